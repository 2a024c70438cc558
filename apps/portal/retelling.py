"""What rows say in English, told in the reader's language.

Workers know no language but English, and neither does a row that several people read: titles, progress, errors and alerts are
written down as they were said. Here their sentences are known, with holes for what they name, so that a page finds the sentence
again and fills in its translation. What is not known stays as it was said.
"""

import re
from functools import lru_cache

from django.utils.translation import get_language, gettext
from django.utils.translation import gettext_noop as _

SAYINGS = (
    # titles of jobs
    _("Process %(name)s"), _("Train %(preset)s on %(name)s"), _("Evaluate %(name)s"), _("Import %(name)s"), _("Answer %(name)s with %(version)s"),
    _("INT8 of %(name)s"), _("pruning of %(name)s"), _("distillation of %(name)s"), _("ONNX of %(name)s"), _("policy of %(name)s"),
    # progress
    _("Reading"), _("Cleaning (%(n)s rows)"), _("Looking for duplicates (%(n)s rows)"), _("Telling domains (%(n)s rows)"),
    _("Asking questions (%(n)s rows)"), _("Making false claims (%(n)s rows)"), _("Keeping held-out questions apart (%(n)s rows)"), _("Writing"),
    _("Loading PyTorch"), _("Reading the dataset"), _("Step %(n)s"), _("Writing the model"),
    _("Loading the model"), _("%(done)s of %(total)s questions answered"), _("%(done)s of %(total)s prompts answered"), _("Writing the answers"), _("Counting"),
    _("Choosing the weights that matter least"), _("Measuring speed against the parent"), _("Measuring speed against the teacher"),
    _("Rounding the weights to 8 bits"), _("Compiling the 8-bit products; only the first time on a machine"),
    _("Loading the teacher"), _("%(message)s, step %(n)s: %(figures)s"),
    _("Writing the graph"), _("Checking it in onnxruntime"), _("Comparing answers and speed with the parent"),
    _("Answering held-out questions"), _("%(done)s of %(total)s held-out questions answered"),
    _("Reading the model"), _("Trying it"), _("Writing it"), _("its worker was lost; queued again"), _("the worker was stopped; goes on when it is back"), _("it made room for other work; goes on after it"),
    # errors of jobs
    _("The worker was lost %(n)s times while it ran this job; the last message was: %(message)s."),
    _("The machine ran out of memory. Use a smaller model, batch or dataset, or a machine with more of it."),
    _("A file could not be read or written (%(file)s): %(error)s. Check the disk, then resume the job."),
    _("A file could not be read or written: %(error)s. Check the disk, then resume the job."),
    _("The batch's engine takes up to %(needed)s, and only %(free)s of this machine's memory is free; resume the job when there is more."),
    _("Only %(n)s MB are free on the disk of %(folder)s; make room and resume the job."),
    # alerts
    _("P99 latency is %(value)s ms, above %(threshold)s ms. Start another inference worker or promote an INT8 version."),
    _("%(value)s of the requests fail, more than %(threshold)s. Look at the inference worker's log."),
    _("A version is live but no inference worker is running."),
    _("No version is live: nobody is answered. Promote one, or roll back."),
    _("The queue is %(value)s full; beyond it questions are refused. Start another inference worker."),
    _("The disk is nearly full: jobs will be refused. Remove old artifacts, or give it more room."),
    _("Errors use up a month's allowance %(value)s times too fast, for an hour and still."),
    _("Errors use up a month's allowance %(value)s times too fast, for six hours and still."),
    _("The last 50 ratings are worse than the 200 before, by %(value)s standard errors. Read them, and think of rolling back."),
    _("The last 100 questions are about other things than the 400 before (%(value)s deviations from chance). Read them: is the model taught of these?"),
    _("topics"), _("p99 latency"), _("error rate"), _("no inference worker"), _("no live version"), _("queue"), _("disk"), _("errors fast"), _("errors slow"),
    _("ratings"),
    # why the number of inference workers changed
    _("no load"), _("%(n)s answers in flight, at most %(most)s a replica"), _("%(n)s answers asked for a second, %(each)s a replica"),
    _("%(n)s answers asked for a second and %(queue)s in flight, %(each)s a replica"), _("P99 %(value)s ms, above %(limit)s ms for %(n)s s"), _("%(rate)s answers a second and %(queue)s in flight need no more"),
    # why a method does not apply to a version
    _("An INT8 version is compressed already; compress its parent instead."),
    _("An ONNX version is compressed already; compress its parent instead."),
    _("This version is pruned already; prune its parent with another threshold or sparsity instead."),
    _("The policy starts from a full model; run it on this version's parent, or quantize this one to INT8."),
    _("ONNX does not express what this model has (%(names)s); quantize, prune or distil it instead."),
    _("An upstream version is another server's model: there are no weights here to compress. Import its folder instead."),
    _("Only an INT8 version is exported as W8A8. Quantize this one first."),
    _("Some matrices of this version are FP32, which servers of W8A8 do not mix within a layer's experts. Export its INT8 sibling."),
    _("%(name)s was written by an earlier version of this program; compress its parent again."),
    # what is wrong with a version's files
    _("%(file)s is missing; restore it from a backup or make the version again."), _("%(file)s was changed after it was written (its SHA-256 differs)."),
    _("The files of %(name)s are damaged: %(error)s."),
    # why a batch's row is not asked
    _("a row needs `prompt`, `question` or `messages`"), _("`messages` must be a list of messages"), _("no message of the user asks anything"),
    _("the line is no JSON object"), _("the line is no JSON"),
    _("There is no prompt in these files. Send JSONL, one JSON object a line, with a prompt, a question or messages."),
    # what is wrong with another server
    _("There is no key named %(name)s: %(variable)s is not set for this process."), _("%(place)s does not answer: %(why)s."),
    _("The file that %(variable)s names cannot be read: %(why)s."), _("%(place)s refuses the key (%(status)s)."),
    _("%(address)s answers with %(status)s, and not with a list of models. The address usually ends in /v1."),
    _("%(place)s has no model %(model)s; it has: %(names)s."), _("The upstream %(place)s cannot be reached: %(why)s."),
    _("The upstream %(place)s fails (%(status)s): %(why)s."), _("The upstream %(place)s refuses the portal's key (%(status)s): %(why)s."),
    _("The upstream %(place)s fails at this question (%(status)s): %(why)s."),
    _("The upstream %(place)s gives no answer to this question, which may be too long for it. %(why)s"),
    _("The upstream %(place)s does not answer. It is tried again every few seconds; ask again in a moment. The last time: %(why)s"),
    _("The upstream %(place)s was still at one answer after %(n)s s."), _("The upstream %(place)s has not begun to answer within %(n)s s."), _("Nothing came for %(n)s s."), _("Its stream ended without an end."),
    _("The upstream %(place)s does not answer at the address that it was connected by (%(status)s): %(why)s."), _("it takes too long"), _("no reason was given"),
    _("The upstream %(place)s broke off in the middle of its answer. %(why)s"), _("its list of models answers with %(status)s"),
    # why its options cannot work for it, or do not go together
    _("A student of the preset %(preset)s would not be smaller than its teacher. Choose a smaller preset, or leave it out."),
    _("The dataset holds no held-out question, so that quality cannot be measured. Choose a method yourself."),
    _("This model is dense: it has no experts to remove. Remove neurons instead."),
    _("That share removes not one of %(n)s experts, of which %(used)s see a token. Give a larger one."),
    _("A sparsity of %(share)s removes not one of %(n)s experts, of which %(used)s see a token. Give a larger one."),
    _("This model's experts stand in groups, from which whole experts cannot be taken. Remove neurons instead."),
    _("Use is counted for plain SwiGLU experts only, and this model's have biases or limits. Let their magnitude decide."),
    _("importance by use is for whole neurons and experts; single weights go by their magnitude"),
    _("experts are removed by their share: give a sparsity, not a threshold"),
    _("give a threshold or a sparsity, not both"), _("give steps or minutes, not both"), _("give max_bleu_loss or min_bleu_ratio, not both"),
    _("2:4 pruning zeroes two of every four weights: it takes neither a threshold nor another sparsity than 0.5"),
    # why a model cannot be read
    _("Weights quantized as %(what)s cannot be read; MXFP4, FP8 in blocks and compressed-tensors' symmetric 8 bits can. Use the model's unquantized folder."),
    # why a file cannot be read
    _("Send JSONL (one JSON object a line), CSV with a header, Parquet or plain UTF-8 text."),
    _("%(name)s is empty. %(formats)s"), _("%(name)s holds only blank lines. %(formats)s"), _("%(name)s is %(what)s, which cannot be read. %(formats)s"),
    _("%(name)s is a binary file, not text. %(formats)s"), _("The format of %(name)s is not known. %(formats)s"),
    _("%(name)s is one JSON array. Write one JSON object a line (JSONL) and send it again."),
    _("%(name)s has no record with known fields.%(found)s A record needs one of: %(needed)s."),
    # why a picture cannot be used
    _("A picture is sent with the request, as a data: URL; addresses on the web are not fetched."),
    _("The data: URL is not of a PNG or JPEG in base64 (data:image/png;base64,…)."),
    _("The picture is larger than %(n)s MB. Make it smaller: the model sees it in few pixels anyway."),
    _("The picture is not base64. Send a PNG or JPEG as a data: URL (data:image/png;base64,…)."),
    _("The picture has %(width)s × %(height)s pixels; %(most)s a side are the most. Make it smaller."),
    _("The picture has too many pixels; %(most)s a side are the most. Make it smaller."),
    _("The picture is no PNG or JPEG that can be read; it may be damaged. Save it again as one of these."),
    _("The work ended with %(how)s. The end of its log:%(log)s"),
    _("signal %(name)s (often: out of memory; try a smaller preset, batch or world size)"), _("signal %(name)s"), _("exit code %(code)s"),
    _("The held-out set %(file)s cannot be read (%(error)s). Process the dataset again."),
    _("The held-out set holds no question. Process a dataset with questions or knowledge entries first."),
    _("The dataset has no %(file)s: process it before training on it."),
    _("The dataset has no questions, claims or documents to learn from. Process one that has, and train again."),
    _("None of the dataset's %(n)s records can be learnt from: they are empty, or longer than %(tokens)s tokens. Raise max_length, or shorten them."),
    _("The checkpoint %(name)s cannot be read (%(error)s). Cancel this job and start a new one."),
    _("Training diverged twice: %(why)s, at half the learning rate too. Lower lr (now %(lr)s) or use precision fp32."),
    _("The job wants a GPU, and PyTorch sees none here. Install the CUDA build of PyTorch, or train with device cpu."),
    _("The parent cannot be trained from: %(error)s"),
    _("This model is INT8 already; compress its parent instead."),
    _("The model cannot be opened: %(error)s"),
    _("%(name)s is not a model folder: it has no config.json."),
    _("This model was not trained here, so there is no text to learn from. Train from it on a dataset first."),
    _("%(message)s diverged: its loss is not finite. Try again with fewer steps, or from another version."),
    _("The student learns"),
    _("Recovering"),
    _("The teacher answers questions that the dataset does not ask"), _("Rounding one matrix at a time"),
    _("Sparsity %(share)s"),
    _("The exported model's logits differ by %(error)s from the parent's, more than %(most)s: not published."),
    _("The policy compares answers with held-out ones, and this model was not trained here. Choose a method yourself."),
    _("The dataset holds no held-out question, so that quality cannot be measured. Process one with questions or knowledge entries."),
    _("With the threshold %(threshold)s no weight is left: the largest is %(largest)s. Choose a smaller one, or give a sparsity."),
    _("A sparsity of %(share)s removes not one of %(n)s hidden units. Give a larger one."),
    _(
        "A student of the preset %(preset)s has %(size)s parameters and would not be smaller than its teacher with %(limit)s. "
        "Choose a smaller preset, or leave it out to have one derived from the teacher."
    ),
    _("The teacher is too small to have a student of %(share)s of its size: the smallest would have %(n)s parameters. Quantize it to INT8."),
    # what a policy says of its steps
    _("Wanted: %(wanted)s."),
    _("Plan: INT8, with mixed precision where only quality lacks; then pruning, then distillation, each in INT8 too; until one is good enough."),
    _("Plan: an INT8 graph; then pruning, then distillation, each in INT8 too; until one is good enough."),
    _("It takes at most %(n)s minutes."),
    _("As small as %(name)s makes it, in INT8, it would not do: %(lacks)s."),
    _("%(n)s bytes are more than the %(most)s allowed, and %(value)s times the parent's speed is less than the %(least)s wanted"),
    _("%(n)s bytes are more than the %(most)s allowed"), _("%(value)s times the parent's speed is less than the %(least)s wanted"),
    _("at least %(bleu)s BLEU"),
    _("%(wanted)s and at most %(n)s bytes"),
    _("It keeps %(wanted)s; nothing dearer need be tried."),
    _("BLEU %(bleu)s is below the least of %(least)s."),
    _("%(n)s bytes are more than the %(most)s allowed."),
    _("%(wanted)s and a P99 of at most %(n)s ms"), _("%(wanted)s and at least %(n)s times the speed"), _("%(wanted)s and a graph for onnxruntime"),
    _("A P99 of %(value)s ms is more than the %(most)s ms allowed."), _("%(value)s times the parent's speed is less than the %(least)s wanted."),
    _("It is no graph for onnxruntime yet."), _("There is no model from %(name)s to go on from."),
    _("INT8 with some matrices left FP32 is larger than INT8 and no faster, and quality is not all that lacked."),
    _("It is handed on because the others lose more; the gate will say whether it may go live."),
    _("Nothing that was tried is good enough; this keeps most of the quality and is handed on, and the gate will say whether it may go live."),
    # words in which compressions' jobs tell what they did
    _("unstructured"), _("neuron"), _("pruned"), _("distilled"), _("baseline"), _("pruning and INT8"), _("distillation and INT8"), _("pruning"),
    _("distillation"), _("mixed precision"), _("pruning and INT8 ONNX"), _("distillation and INT8 ONNX"), _("layer"), _("expert"), _("use"),
    _("magnitude"),
    # what a call of the REST interface does
    _("How many requests there were, how long they and their phases took, how many failed or were known: step by step until now."),
    _("What somebody should look at, and what is over, each with the worst that was seen."),
    _("Say that you look after it."),
    _("Tell nobody of a rule, or of any, for so many minutes; alerts are shown all the same."),
    _("A new token, which is shown now and never again."),
    _("Revoke it: the row stays, so that the audit log keeps its sense."),
    _("Accounts with their roles, for administrators."),
    _("A new account; a viewer's where no role is given."),
    _("Ask the live version, or another, one question; the answer comes whole."),
    _("Forget it."),
    _("The versions by their names, and `live` for the one that is."),
    _("One version by its name."),
    _("Answer a conversation, whole or streamed, in OpenAI's shape."),
    _("Go on from a prompt, whole or streamed, in OpenAI's shape."),
    _("A vector of length 1 for each text, in OpenAI's shape."),
    _("Shapes of models that can be trained, with their parameters and the dense model as large."),
    _("Held-out questions and claims that versions are evaluated on."),
    _("Models that were trained, compressed, imported or connected, with their newest evaluation; one by one with lineage and figures too."),
    _("What it consists of: names, sizes, SHA-256, and where each is downloaded."),
    _("One of its files."),
    _("Connect a model that another server holds; it is asked at once whether it has it."),
    _("Uploaded texts, questions and ratings, and how far their processing is."),
    _("Queue its cleaning: duplicates go, questions are made and some are held out; 409 while that is under way."),
    _("What the newest finished run kept, step by step, and why rows were dropped; domains, languages, duplicates."),
    _("A/B tests of two versions on live traffic."),
    _("A draft: nothing changes for anybody until it is started."),
    _("Split the conversations from now on; 409 while another experiment runs."),
    _("The live version answers everybody again; its figures stay."),
    _("Ratings of answers, with their questions and what the answer should have been."),
    _("What was asked for, how far it is, and what came of it or why it failed."),
    _("Memory part by part with its formula, and which devices hold it, how many, how fast, at what cost."),
    _("What was measured on a version, and what to change next, most urgent first."),
    _("The requests behind the figures: one's own, for operators all."), _("When the number of inference workers changed, and why."),
    _("The job for an existing scheduler: a JobSet, a TrainJob of Kubeflow Trainer 2, or an sbatch script. A step has as many examples as here."),
    _("Requests with their phases, as long as they are kept: one's own, for operators all; the newest first."),
    _("One request, by its own id or by that of an answer that it made."),
    _("Rules of which nobody is told for a while."), _("End it before its time."),
    _("Who changed what, from where, before and after."),
    _("One turn, streamed."),
    _("A queued job ends at once; a running one within seconds."),
    _("What the job reported: a list, or a stream until the job ends where `Accept: text/event-stream` is asked for."),
    _("Queue a failed or cancelled job again; it goes on from its last checkpoint."),
    _("One's own conversations."),
    _("A file (multipart), or records (JSON)."),
    _("The rows of the newest finished run, kept and dropped, in their order."),
    _("The spans of time in which one version was live."),
    _("Each arm's counts, ratings with their interval, accuracy, recall and latency; the difference; a verdict in words."),
    _("Rate an answer (201), or change its rating (200)."),
    _("All ratings that are in no dataset yet become one, ready to be processed and trained on."),
    _("Jobs of every kind. `url` leads to the row of the job's own kind, which holds more."),
    _("Whose token this is."),
    _("Import a model in Hugging Face's layout, or an adapter in PEFT's."),
    _("An INT8 version as a W8A8 checkpoint of compressed-tensors, which vLLM and transformers load: a tar, with SHA256SUMS at its end."),
    _("What the gate says now: may this version go live?"),
    _("Make it live; 409 with every reason while its gate does not pass."),
    _("Take this, the live version, back to the one that served before it."),
    _("One's own tokens."),
    _("Choose or clear the smaller relative that guesses ahead for it while it answers. Its answers stay the same."),
    _("Answer many prompts while nobody waits."), _("The rows as they came, in their order, each with its answer or why it has none."),
    _("Versions whose model another server holds; they are model versions like others."),
    _("Give `steps` or `minutes`; two minutes where neither is given."),
    _("Queue a method with its own options; those of another method are refused."), _("Queue an evaluation on held-out questions."),
    _("Change the role, lock the account or let it in again, set a new password."),
    # names
    _("this machine (%(name)s)"),
    _("%(control)s against %(treatment)s"),
    _("%(n)s ratings"),
)  # fmt: skip
_SENTENCES = ("formats", "message", "wanted", "reason", "how", "lacks", "why")  # holes that hold another of the sayings
_METHODS = ("INT8", "INT8 ONNX", "ONNX")  # the same in every language
_HOLE = re.compile(r"%\((\w+)\)s")


@lru_cache(maxsize=1)
def _forms() -> list[tuple[re.Pattern[str], str]]:
    """Those with holes, the most telling first: a title such as “policy of v2” must not be found in a longer sentence's pattern."""
    found = []
    for saying in SAYINGS:
        parts = _HOLE.split(saying)
        if len(parts) > 1:
            pattern = "".join(re.escape(part) if place % 2 == 0 else f"(?P<{part}>.*)" for place, part in enumerate(parts))
            found.append((re.compile(pattern, re.DOTALL), saying))
    return sorted(found, key=lambda form: -len(_HOLE.sub("", form[1])))


def retold(text: str) -> str:
    """`text`, which is in English, in the reader's language; as it is where nobody knows how to say it."""
    if not text or (get_language() or "en").startswith("en"):
        return text
    if text in SAYINGS:
        return gettext(text)
    before, mark, after = text.partition(": ")  # a policy's parts, "INT8: Measuring speed against the parent"
    if mark and (before in SAYINGS or before in _METHODS):
        return f"{retold(before)}: {retold(after)}"
    for pattern, saying in _forms():
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            return gettext(saying) % {name: retold(said) if name in _SENTENCES else said for name, said in found.items()}
    return f"{retold(before)}: {retold(after)}" if mark else text
