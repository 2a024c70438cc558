"""How well the model answers questions that it is not taught, while it trains: a glance. Gates have an evaluation of their own."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sacrebleu.metrics import BLEU

from workers.moe import ChatTokenizer, Decoder, generate
from workers.training.batches import pack
from workers.training.examples import Example
from workers.training.prepare import Question

MOST_FOR_LOSS = 64
ANSWERED = 8
LONGEST_ANSWER = 48  # tokens


def glance(model: Decoder, tokenizer: ChatTokenizer, questions: Sequence[Question]) -> dict[str, float | int | None]:
    """`loss`: mean cross-entropy over the reference answers' tokens in nats, as in training; `bleu`: of the greedy answers to the first few.

    BLEU splits Chinese by character and the rest as 13a does (sacreBLEU's `zh`), so that one figure serves mixed questions.
    """
    without_images = [q for q in questions if q.image is None][:MOST_FOR_LOSS]
    found: dict[str, float | int | None] = {"loss": None, "bleu": None, "questions": len(without_images), "answered": 0}
    fits = [e for e in (_example(q, tokenizer) for q in without_images) if len(e) <= model.config.max_seq_len]
    device = model.embedding.weight.device
    if fits:
        batch = pack(fits).to(device)
        with torch.no_grad():
            logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)
            found["loss"] = float(F.cross_entropy(logits.float(), batch.targets))
    asked = questions[:ANSWERED]
    if asked:
        answers = [generate(model, tokenizer, q.question, LONGEST_ANSWER, q.image) for q in asked]
        found["bleu"] = BLEU(tokenize="zh").corpus_score(answers, [[q.reference for q in asked]]).score
        found["answered"] = len(asked)
    return found


def _example(question: Question, tokenizer: ChatTokenizer) -> Example:
    ids, learnt = tokenizer.encode_example(question.question, question.reference)
    return Example(np.array(ids, np.int32), np.array(learnt, bool), "", 1.0)
