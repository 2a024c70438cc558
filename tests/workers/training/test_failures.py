"""What cannot be trained is refused with a sentence for people."""

import json

import pytest
import torch

from workers.moe import ChatTokenizer, Decoder, ModelConfig, save_model
from workers.protocol import JobError
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


@pytest.fixture
def parent(tmp_path, tiny):
    tokenizer = ChatTokenizer.train(["What is gold? gold is element 0."] * 4, 320)
    model = Decoder(ModelConfig.from_dict(tiny).with_(vocab_size=tokenizer.vocab_size))
    model.initialise(torch.Generator().manual_seed(0))
    save_model(tmp_path / "parent", model, tokenizer, "A test.")
    return tmp_path / "parent"


def test_an_empty_dataset_is_refused(make_spec, dataset, write_lines):
    write_lines(dataset / "train.jsonl", [])
    with pytest.raises(JobError, match="no questions, claims or documents to learn from"):
        prepare(make_spec(), ALONE)


def test_a_dataset_of_records_without_text_is_refused(make_spec, dataset, write_lines):
    write_lines(dataset / "train.jsonl", [{"kind": "question", "question": "Why?"}, {"kind": "document", "text": " "}])
    with pytest.raises(JobError, match="None of the dataset's 2 records"):
        prepare(make_spec(), ALONE)


def test_a_dataset_that_was_not_processed_is_refused(make_spec, dataset):
    (dataset / "train.jsonl").unlink()
    with pytest.raises(JobError, match="process it before training"):
        prepare(make_spec(), ALONE)


def test_a_line_that_is_no_json_is_named(make_spec, dataset):
    with (dataset / "train.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(JobError, match=r"Line 23 of train\.jsonl is not JSON"):
        prepare(make_spec(), ALONE)


def test_a_longest_length_that_the_model_cannot_see_is_refused(make_spec):
    with pytest.raises(JobError, match="max_length is 65, but the model sees at most 64"):
        prepare(make_spec(max_length=65), ALONE)


def test_a_longest_length_that_no_record_fits_is_refused(make_spec, dataset, write_lines):
    write_lines(dataset / "train.jsonl", [{"kind": "question", "question": "What is gold? " * 20, "answer": "A metal."}])
    with pytest.raises(JobError, match=r"longer than 8 tokens\. Raise max_length"):
        prepare(make_spec(max_length=8), ALONE)


def test_records_that_are_left_out_are_told(make_spec, dataset):
    with (dataset / "train.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "question", "question": "What is gold? " * 60, "answer": "A metal."}) + "\n")
    assert prepare(make_spec(), ALONE).notes == ["1 of 23 records are left out: empty, or longer than 64 tokens."]


def test_a_run_goes_on_from_its_parents_weights_and_tokenizer(make_spec, parent):
    from workers.moe import load_model

    prepared = prepare(make_spec(model=None, preset="nano", parent_folder=parent), ALONE)
    theirs, tokenizer = load_model(parent)
    assert prepared.model.config == theirs.config and prepared.tokenizer.vocab_size == tokenizer.vocab_size
    assert all(a.equal(b) for a, b in zip(prepared.model.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_a_parent_of_another_shape_is_refused(make_spec, parent, tiny):
    with pytest.raises(JobError, match=r"another shape than the job asks for \(n_layers\)"):
        prepare(make_spec(model={**tiny, "n_layers": 3}, parent_folder=parent), ALONE)


def test_a_parent_with_a_damaged_file_is_refused(make_spec, parent):
    (parent / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(JobError, match="The parent cannot be trained from: The weights of parent are damaged"):
        prepare(make_spec(parent_folder=parent), ALONE)


def test_a_parent_whose_tokenizer_is_larger_than_its_model_is_refused(make_spec, parent):
    ChatTokenizer.train([" ".join(f"word{n} other{n}" for n in range(300))] * 3, 900).save(parent, 64)
    with pytest.raises(JobError, match="they do not belong together"):
        prepare(make_spec(parent_folder=parent), ALONE)
