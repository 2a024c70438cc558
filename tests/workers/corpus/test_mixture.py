import pytest

from workers.corpus.mixture import DOCUMENT_TOKEN_SHARE, parts_of, tokens_in, weigh_documents
from workers.corpus.records import CLAIM, DOCUMENT, ENTRY, QUESTION, Record


def question(n: int) -> Record:
    return Record(row=n, id=f"q{n}", kind=QUESTION, question=f"What is number {n} of this list?", answer="It is a thing with a name.", split="train")


def document(n: int, words: int) -> Record:
    return Record(row=n, id=f"d{n}", kind=DOCUMENT, text="word " * words)


def test_documents_are_a_small_share_of_what_training_reads_beside_questions():
    weighed = weigh_documents([question(n) for n in range(100)] + [document(n, 200) for n in range(100)])
    tokens = {part["kind"]: part["tokens"] for part in parts_of(weighed)}

    assert tokens[DOCUMENT] / sum(tokens.values()) == pytest.approx(DOCUMENT_TOKEN_SHARE, abs=0.005)


def test_few_documents_are_not_blown_up_and_documents_alone_count_in_full():
    alone = [document(n, 50) for n in range(5)]

    assert weigh_documents(alone) == alone
    assert weigh_documents([*(question(n) for n in range(1000)), document(0, 5)])[-1].weight == 1.0


def test_no_weight_is_zero_for_training_takes_zero_for_absent():
    weighed = weigh_documents([question(0), *(document(n, 5000) for n in range(200))])

    assert all(r.weight > 0 for r in weighed)


def test_the_parts_count_what_the_files_hold():
    entry = Record(row=0, id="e", kind=ENTRY, title="Gold", text="Gold is a metal.")
    held_out = Record(row=1, id="c", kind=CLAIM, question="Is it?", answer="Yes.", text="It is.", label=True, split="eval", weight=0.5)
    gone = document(2, 10).dropped("cleaned", "too_short")

    assert [(p["split"], p["kind"], p["rows"]) for p in parts_of([entry, held_out, gone, question(3)])] == [
        ("train", QUESTION, 1),
        ("eval", CLAIM, 1),
    ]
    assert parts_of([held_out])[0]["tokens"] == round(0.5 * tokens_in(held_out))
