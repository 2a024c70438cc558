import json

from workers.corpus.pipeline import process
from workers.corpus.preferences import preferences_in
from workers.corpus.records import RATING, Record
from workers.corpus.spec import ProcessSpec


def rated(n: int, rating: int, answer: str, question: str = "What is gold?", **more) -> Record:
    return Record(row=n, id=f"r{n}", kind=RATING, question=question, answer=answer, rating=rating, **more)


def pairs_of(*records: Record) -> set[tuple[str, str]]:
    return {(row["chosen"], row["rejected"]) for row in preferences_in(records).pairs}


def judged_of(*records: Record) -> set[tuple[str, bool]]:
    return {(row["answer"], row["good"]) for row in preferences_in(records).judged}


def test_the_best_answer_is_preferred_to_each_worse_one_to_the_same_question():
    rows = [rated(0, 5, "A metal."), rated(1, 3, "A thing."), rated(2, 1, "A gas.", question="what is GOLD"), rated(3, 1, "No.", question="Why?")]

    assert pairs_of(*rows) == {("A metal.", "A thing."), ("A metal.", "A gas.")}
    assert judged_of(*rows) == {("A metal.", True), ("A gas.", False), ("No.", False)}


def test_a_correction_is_preferred_to_the_answer_that_it_corrects():
    assert pairs_of(rated(0, 1, "A gas.", correction="A metal.")) == {("A metal.", "A gas.")}
    assert judged_of(rated(0, 1, "A gas.", correction="A metal.")) == {("A metal.", True), ("A gas.", False)}


def test_a_good_answer_that_was_polished_is_not_rejected():
    assert pairs_of(rated(0, 5, "A metal", correction="A yellow metal.")) == set()


def test_of_two_bad_answers_none_is_chosen():
    assert pairs_of(rated(0, 2, "A gas."), rated(1, 1, "Water.")) == set()


def test_the_same_question_about_two_pictures_is_no_pair():
    assert pairs_of(rated(0, 5, "A circle.", image="data:1"), rated(1, 1, "A square.", image="data:2")) == set()


def test_several_peoples_mean_decides():
    assert pairs_of(rated(0, 5, "A gas."), rated(1, 1, "a gas"), rated(2, 4, "A metal.")) == {("A metal.", "A gas.")}
    assert judged_of(rated(0, 5, "A gas."), rated(1, 2, "a gas")) == set()


def test_the_folder_has_the_preferences_that_are_not_held_out(tmp_path):
    rows = [
        {"question": "What is gold?", "answer": "A gas.", "rating": 1, "correction": "A metal."},
        {"question": "What is tin?", "answer": "A gas.", "rating": 2},
        {"question": "What is tin?", "answer": "A soft metal.", "split": "eval"},
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    report = process(
        ProcessSpec(version=1, inputs=[tmp_path / "rated.jsonl"], output_folder=tmp_path / "out", work_folder=tmp_path / "work"), lambda *_: None
    )

    written = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["question"]) for r in written] == [("pair", "What is gold?"), ("judged", "What is gold?"), ("judged", "What is gold?")]
    assert report["preferences"] == {"pairs": 1, "good": 1, "bad": 1}
