import pytest

from workers.corpus.ratings import apply_ratings
from workers.corpus.records import RATING, Record


def rated(n: int, rating: int, answer: str = "A metal.", question: str = "What is gold?", **more) -> Record:
    return Record(row=n, id=f"r{n}", kind=RATING, question=question, answer=answer, rating=rating, **more)


@pytest.mark.parametrize(("rating", "weight"), [(5, 3.0), (4, 2.0), (3, 0.5)])
def test_a_better_answer_weighs_more(rating, weight):
    (done,) = apply_ratings([rated(0, rating)])

    assert (done.kind, done.weight, done.split) == ("question", weight, "train")


@pytest.mark.parametrize("rating", [1, 2])
def test_a_bad_answer_is_not_trained_on(rating):
    assert apply_ratings([rated(0, rating)])[0].reason == "low_rating"


def test_several_people_decide_by_their_mean():
    assert [r.reason for r in apply_ratings([rated(0, 5), rated(1, 1, question="what is GOLD")])] == [None, None]
    assert {r.weight for r in apply_ratings([rated(0, 5), rated(1, 1)])} == {0.5}
    assert {r.reason for r in apply_ratings([rated(0, 3), rated(1, 1)])} == {"low_rating"}


def test_a_correction_is_the_truth_whatever_the_rating():
    (done,) = apply_ratings([rated(0, 1, correction="A yellow metal.")])

    assert (done.reason, done.answer, done.original, done.weight) == (None, "A yellow metal.", "A metal.", 3.0)


def test_a_correction_holds_against_another_persons_good_rating():
    liked, corrected = apply_ratings([rated(0, 5), rated(1, 2, correction="A yellow metal.")])

    assert (liked.reason, corrected.reason, corrected.answer) == ("corrected", None, "A yellow metal.")
