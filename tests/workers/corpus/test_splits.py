from workers.corpus.records import CLAIM, ENTRY, QUESTION, Record
from workers.corpus.splits import assign_splits


def question(n: int, answer: str, split: str | None = None, source: str | None = None) -> Record:
    return Record(row=n, id=f"q{n}", kind=QUESTION, question=f"Question {n}?", answer=answer, split=split, source=source)


def test_a_split_that_the_file_gives_is_honoured():
    rows = [question(n, "same", split="eval" if n % 2 else "train") for n in range(10)]

    assert [r.split for r in assign_splits(rows, seed=0)] == [r.split for r in rows]


def test_about_a_tenth_is_held_out_and_its_fact_is_still_taught():
    rows = [question(n, f"answer {n // 4}") for n in range(2000)]
    done = assign_splits(rows, seed=0)

    assert 0.07 < sum(r.split == "eval" for r in done) / len(done) < 0.13
    taught = {r.answer for r in done if r.split == "train"}
    assert all(r.answer in taught for r in done)


def test_a_question_whose_fact_nothing_else_teaches_stays_in_training():
    related = [question(n, "shared") for n in range(40)]
    alone = [question(100 + n, f"only {n}") for n in range(200)]

    done = assign_splits(related + alone, seed=0)

    assert {r.split for r in done[40:]} == {"train"}
    assert "eval" in {r.split for r in done[:40]}


def test_questions_about_an_entry_may_be_held_out_for_the_entry_teaches_them():
    entry = Record(row=0, id="e", kind=ENTRY, title="Gold", text="Gold is a metal.")
    rows = [entry, *(question(n, f"answer {n}", source="e") for n in range(1, 300))]

    assert "eval" in {r.split for r in assign_splits(rows, seed=0)}


def test_a_file_of_unrelated_questions_is_split_all_the_same():
    done = assign_splits([question(n, f"answer {n}") for n in range(500)], seed=0)

    assert 0.05 < sum(r.split == "eval" for r in done) / len(done) < 0.15


def test_the_split_of_a_row_does_not_depend_on_the_other_rows():
    rows = [Record(row=n, id=f"c{n}", kind=CLAIM, text=f"Claim {n}.", label=True) for n in range(100)]
    whole = {r.id: r.split for r in assign_splits(rows, seed=0)}

    assert {r.id: r.split for r in assign_splits(rows[50:], seed=0)} == {i: s for i, s in whole.items() if int(i[1:]) >= 50}
