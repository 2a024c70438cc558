import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.corpus.deduplicate import deduplicate
from workers.corpus.records import DOCUMENT, ENTRY, QUESTION, Record
from workers.corpus.same_statement import same_statement

LONG = "The river rises in the mountains, crosses the wide plain and reaches the sea after nine hundred kilometres of slow turns between fields and villages."


def document(n: int, text: str, **more) -> Record:
    return Record(row=n, id=f"d{n}", kind=DOCUMENT, text=text, lang=more.pop("lang", "en"), **more)


def reasons(*texts: str, lang: str = "en") -> list[str | None]:
    return [r.reason for r in deduplicate([document(n, text, lang=lang) for n, text in enumerate(texts)])]


def test_case_punctuation_and_width_do_not_make_another_text():
    assert reasons(LONG, LONG.upper(), LONG.replace(",", " ")) == [None, "exact_duplicate", "exact_duplicate"]
    assert reasons("京剧的演员脸上画着脸谱，表示人物的性格。", "京剧的演员脸上画着脸谱,表示人物的性格", lang="zh") == [None, "exact_duplicate"]


def test_a_few_other_words_make_a_near_duplicate():
    assert reasons(LONG, LONG.replace("wide ", ""), "Something else entirely is said in this sentence here.") == [None, "near_duplicate", None]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The capital of the republic of France is the old city of Paris.", "The capital of the republic of Spain is the old city of Madrid."),
        ("The tower was finished in the year 1889 after two years of work.", "The tower was finished in the year 1931 after two years of work."),
        ("This mushroom from the northern woods is safe to eat.", "This mushroom from the northern woods is not safe to eat."),
        ("The pressure in the vessel will increase when it is heated.", "The pressure in the vessel will decrease when it is heated."),
        ("一号线的首班车五点三十分从东门站发车。", "二号线的首班车五点三十分从东门站发车。"),
        ("这种蘑菇可以放心食用。", "这种蘑菇不可以放心食用。"),
    ],
)
def test_facts_that_share_a_template_are_different(one, other):
    assert not same_statement(one, other)
    assert same_statement(one, one)


def test_a_typing_error_is_not_another_fact():
    assert same_statement("The heart pumps blood thruogh the body.", "The heart pumps blood through the body.")


def test_what_people_curated_stays_and_the_found_copy_goes():
    entry = Record(row=1, id="e", kind=ENTRY, title="River", text=LONG, lang="en")

    done = deduplicate([document(0, LONG.replace("slow ", "")), entry])

    assert [r.reason for r in done] == ["near_duplicate", None]
    assert done[0].cluster == done[1].cluster


def test_a_question_has_one_answer_and_the_better_rated_stays():
    rows = [
        Record(row=n, id=f"q{n}", kind=QUESTION, question=q, answer=a, weight=w)
        for n, (q, a, w) in enumerate([("Why?", "No.", 1), ("why", "Yes.", 3)])
    ]

    assert [r.reason for r in deduplicate(rows)] == ["exact_duplicate", None]


def test_rows_that_were_dropped_before_take_no_part():
    gone = document(0, LONG).dropped("cleaned", "advertisement")

    assert [r.reason for r in deduplicate([gone, document(1, LONG)])] == ["advertisement", None]


def planted(count: int, rng: random.Random) -> tuple[list[Record], int]:
    """`count` random texts, each with a copy in which two of forty words differ."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(3000)]
    texts = [rng.choices(words, k=40) for _ in range(count)]
    copies = [
        [rng.choice(words) if n in changed else word for n, word in enumerate(text)] for text in texts for changed in [rng.sample(range(5, 40), 2)]
    ]
    return [document(n, " ".join(text)) for n, text in enumerate(texts + copies)], count


def test_planted_copies_are_found_and_nothing_else():
    rows, count = planted(400, random.Random(1))

    done = deduplicate(rows)

    dropped = {r.row for r in done if not r.kept}
    assert len(dropped & set(range(count, 2 * count))) + len(dropped & set(range(count))) >= 0.99 * count
    assert all(done[n].cluster == done[n + count].cluster for n in range(count) if n in dropped or n + count in dropped)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [LONG, LONG.replace("wide", "broad"), LONG.lower(), "Another text that has nothing to do with it at all.", "京剧的演员脸上画着脸谱。"]
        ),
        max_size=9,
    )
)
def test_each_cluster_keeps_exactly_one_row_and_a_second_pass_finds_nothing(texts):
    done = deduplicate([document(n, text, lang="zh" if text[0] == "京" else "en") for n, text in enumerate(texts)])
    kept = [r for r in done if r.kept]

    assert len({r.cluster for r in done if r.cluster is not None}) == sum(r.cluster is not None for r in kept)
    assert all(r.kept for r in deduplicate([replace(r, cluster=None) for r in kept]))
