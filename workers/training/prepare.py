"""What a run needs before its first step: tokenizer, model, examples, questions to try. The same on every rank."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workers.moe import BrokenModel, ChatTokenizer, Decoder, ModelConfig, UnsupportedModel, load_model, load_tokenizer
from workers.moe.checkpoint import publish_folder
from workers.protocol import JobError
from workers.training.batches import sampling_weights
from workers.training.examples import EVAL_FILE, TRAIN_FILE, Example, as_question, encode, read_records, texts_of
from workers.training.lora import adapt
from workers.training.preference import Unit, read_units
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec

MOST_TOKENIZER_CHARACTERS = 50_000_000  # more text changes the merges of a small vocabulary little, and costs minutes
MOST_QUESTIONS_TRIED = 200


@dataclass(frozen=True)
class Question:
    question: str
    reference: str
    image: str | None = None  # a data URL of the picture that is asked about


@dataclass(frozen=True)
class Prepared:
    tokenizer: ChatTokenizer
    model: Decoder  # with the weights to begin from
    examples: list[Example]
    weights: np.ndarray  # (examples,) how often each comes in an epoch
    preferences: list[Unit]  # what preference training learns from; empty where the run has none
    questions: list[Question]  # held out where the dataset has such, to be answered while the model trains
    notes: list[str]  # for people


def prepare(spec: TrainSpec, ranks: Ranks) -> Prepared:
    """JobError where the dataset has nothing to learn from, or the parent does not fit."""
    train_file = spec.dataset_folder / TRAIN_FILE
    notes: list[str] = []
    parent = _open_parent(spec) if spec.parent_folder else None
    tokenizer = parent[1] if parent else _tokenizer(spec, ranks, train_file)
    config = parent[0].config if parent else spec.model_config_for(tokenizer.vocab_size, pictures=tokenizer.image_id is not None)
    max_length = _max_length(spec, config)
    examples, without = encode(read_records(train_file), tokenizer, max_length, config)
    preferences = read_units(spec.dataset_folder, spec.preference_method, tokenizer, max_length, spec.seed) if spec.preference_method else []
    if not examples and not preferences:
        raise JobError(_why_nothing(without, max_length))
    if without:
        blind = not config.image_size and _has_pictures(train_file)
        also = ", or about a picture, which the parent has not learnt to see" if blind else ""
        notes.append(f"{without:,} of {without + len(examples):,} records are left out: empty, or longer than {max_length} tokens{also}.")
    if parent and parent[0].config.is_moe and parent[0].config.router != spec.router:
        notes.append(f"The parent's router is {parent[0].config.router}; it is kept.")
    model = parent[0] if parent else _new_model(config, spec.seed)
    if spec.lora:
        adapt(model, spec.lora, spec.seed)
    return Prepared(
        tokenizer, model.to(ranks.device).train(), examples, sampling_weights(examples, spec.domain_weights), preferences,
        _questions(spec, train_file), notes,
    )  # fmt: skip


def _new_model(config: ModelConfig, seed: int) -> Decoder:
    model = Decoder(config)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def _open_parent(spec: TrainSpec) -> tuple[Decoder, ChatTokenizer]:
    assert spec.parent_folder is not None
    try:
        model, tokenizer = load_model(spec.parent_folder)
    except (BrokenModel, UnsupportedModel) as error:
        raise JobError(f"The parent cannot be trained from: {error}") from error
    if tokenizer.vocab_size > model.config.vocab_size:
        raise JobError(
            f"The parent's tokenizer has {tokenizer.vocab_size:,} tokens and its model {model.config.vocab_size:,}: they do not belong together. Choose another parent."
        )
    if spec.model is not None:
        wanted = ModelConfig.from_dict(spec.model).with_(vocab_size=model.config.vocab_size)
        differing = [k for k, v in wanted.as_dict().items() if v != model.config.as_dict()[k]]
        if differing:
            raise JobError(f"The parent has another shape than the job asks for ({', '.join(differing)}). Leave the model out to keep the parent's.")
    return model, tokenizer


def _max_length(spec: TrainSpec, config: ModelConfig) -> int:
    if spec.max_length <= config.max_seq_len:
        return spec.max_length
    if "max_length" in spec.model_fields_set:
        raise JobError(f"max_length is {spec.max_length}, but the model sees at most {config.max_seq_len} tokens. Lower it.")
    return config.max_seq_len


def _tokenizer(spec: TrainSpec, ranks: Ranks, train_file: Path) -> ChatTokenizer:
    """Learnt once, by the first rank, and kept: a resumed run must number the tokens as before."""
    folder = spec.work_folder / "tokenizer"
    if ranks.is_first and not folder.exists():
        tokenizer = ChatTokenizer.train(_some_text(train_file), spec.most_vocabulary, pictures=_has_pictures(train_file))
        temporary = folder.with_name(".tokenizer.tmp")
        temporary.mkdir(parents=True, exist_ok=True)
        tokenizer.save(temporary, spec.max_length)
        publish_folder(temporary, folder)
    ranks.barrier()
    return load_tokenizer(folder)


def _has_pictures(train_file: Path) -> bool:
    return any(record.get("image") for record in read_records(train_file))


def _some_text(train_file: Path):
    left = MOST_TOKENIZER_CHARACTERS
    for text in texts_of(read_records(train_file)):
        yield text
        left -= len(text)
        if left < 0:
            return


def _why_nothing(without: int, max_length: int) -> str:
    if not without:
        return "The dataset has no questions, claims or documents to learn from. Process one that has, and train again."
    return f"None of the dataset's {without:,} records can be learnt from: they are empty, or longer than {max_length} tokens. Raise max_length, or shorten them."


def _questions(spec: TrainSpec, train_file: Path) -> list[Question]:
    held_out = spec.dataset_folder / EVAL_FILE
    for path in (held_out, train_file):
        if not path.exists():
            continue
        found: list[Question] = []
        for record in read_records(path):
            pair = as_question(record)
            if pair and record.get("label") is None:
                found.append(Question(*pair, record.get("image")))
        if found:
            # Spread over the file, so that the first few tried are of several domains and languages.
            return [found[i] for i in np.random.default_rng(spec.seed).permutation(len(found))[:MOST_QUESTIONS_TRIED]]
    return []
