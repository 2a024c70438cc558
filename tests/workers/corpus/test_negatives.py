from dataclasses import replace

import pytest

from workers.corpus.negatives import BROKEN_LOGIC, WRONG_FACT, WRONG_NUMBER, ask_claim, make_claims
from workers.corpus.records import CLAIM, ENTRY, Record
from workers.corpus.verdicts import is_refusal

KNOWLEDGE = [
    ("Gold", "Gold is a metal that melts at 1064 degrees Celsius.", "en"),
    ("Mercury", "Mercury is a planet that circles the Sun in 88 days.", "en"),
    ("Insulin", "Insulin is a hormone that lowers blood sugar.", "en"),
    ("Chess", "Chess is a game for two players on 64 squares.", "en"),
    ("Inflation", "Inflation is a general rise in prices.", "en"),
    ("Python", "Python is a language used by programmers since 1991.", "en"),
    ("光合作用", "光合作用是植物利用阳光制造糖的过程。", "zh"),
    ("长城", "长城是中国古代修建的防御工程。", "zh"),
    ("黄金", "黄金是一种不易生锈的金属。", "zh"),
]


@pytest.fixture
def rows() -> list[Record]:
    facts = [(f"{t}", s, lang) for t, s, lang in KNOWLEDGE]
    # Enough entries for shares to be seen: the same knowledge under other names.
    named = [
        (f"{t} {n}" if lang == "en" else f"{t}{n}", s.replace(t, f"{t} {n}" if lang == "en" else f"{t}{n}"), lang)
        for n in "ABCDEFGHIJKLMNOPQRST"
        for t, s, lang in facts
    ]
    return [Record(row=i, id=f"e{i}", kind=ENTRY, title=t, text=s, lang=lang, domain=f"d{i % 3}") for i, (t, s, lang) in enumerate(named)]


def test_false_claims_are_never_what_an_entry_says(rows):
    said = {r.text for r in rows}
    claims = make_claims(rows, seed=0, first_row=0)

    assert all((claim.text in said) == claim.label for claim in claims)
    assert {claim.variant for claim in claims if not claim.label} == {WRONG_FACT, WRONG_NUMBER, BROKEN_LOGIC}


def test_held_out_falsehoods_were_never_met_in_training(rows):
    claims = make_claims(rows, seed=0, first_row=0)
    trained = {c.text for c in claims if c.split == "train"}
    trained_questions = {c.question for c in claims if c.split == "train"}
    held_out = [c for c in claims if c.split == "eval"]

    assert not {c.text for c in held_out if not c.label} & trained
    assert not {c.question for c in held_out} & trained_questions
    assert 0.08 * len(rows) < sum(c.label for c in held_out) < 0.25 * len(rows)


def test_each_answer_says_what_the_label_says(rows):
    claims = make_claims(rows, seed=0, first_row=0)

    assert all(is_refusal(c.answer, c.lang, c.question) != c.label for c in claims)
    assert all(c.source in {r.id for r in rows} for c in claims)


def test_claims_do_not_depend_on_the_order_of_rows_and_follow_the_seed(rows):
    first = {(c.source, c.question, c.split) for c in make_claims(rows, seed=1, first_row=0)}

    assert {(c.source, c.question, c.split) for c in make_claims(rows[::-1], seed=1, first_row=0)} == first
    assert {(c.source, c.question, c.split) for c in make_claims(rows, seed=2, first_row=0)} != first


def test_entries_that_say_the_same_make_no_false_claims_of_each_other():
    one = Record(row=0, id="a", kind=ENTRY, title="Table salt", text="Table salt is the compound of sodium and chlorine.", lang="en")
    other = replace(one, row=1, id="b", title="Sodium chloride", text="Sodium chloride is the compound of sodium and chlorine.")

    assert all(claim.label for claim in make_claims([one, other], seed=0, first_row=2))


def test_an_uploaded_claim_becomes_a_question_and_a_verdict():
    claim = Record(row=0, id="c", kind=CLAIM, text="The Sun circles the Earth.", label=False, lang="en")

    asked = ask_claim(claim)

    assert asked.question == "Is it true that the Sun circles the Earth?"
    assert is_refusal(asked.answer, "en", asked.question)
    assert ask_claim(replace(claim, text="太阳绕着地球转。", lang="zh")).question == "太阳绕着地球转，对吗？"


def test_a_claim_is_refused_in_words_or_by_naming_what_it_is_true_of():
    asked = "Is it true that gold is a planet that circles the Sun in 88 days?"

    assert is_refusal("That describes Mercury.", "en", asked)
    assert is_refusal("No, that is false.", "en", asked)
    assert not is_refusal("That describes gold.", "en", asked)
    assert not is_refusal("Yes, that is true.", "en", asked)
    assert is_refusal("这说的是长城。", "zh", "黄金是中国古代修建的防御工程，对吗？")
    assert not is_refusal("这说的是黄金。", "zh", "判断对错：黄金是一种不易生锈的金属。")
