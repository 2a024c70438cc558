import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.corpus.augment import CASUAL, casually, make_pairs
from workers.corpus.phrasing import fault_of
from workers.corpus.questions_from_statements import questions_from
from workers.corpus.records import ENTRY, QUESTION, Record
from workers.corpus.subjects import subject_of

NOUNS = ["river", "metal", "engine", "novel", "virus", "planet", "contract", "melody", "enzyme", "market"]


def entries(count: int) -> list[Record]:
    english = [
        (f"{NOUNS[n % 10].title()} type {n}", f"{NOUNS[n % 10].title()} type {n} is a thing that does work number {n}.", "en") for n in range(count)
    ]
    chinese = [(f"概念{n}号", f"概念{n}号是用于说明第{n}件事情的一种方法。", "zh") for n in range(count)]
    return [Record(row=i, id=f"e{i}", kind=ENTRY, title=t, text=s, lang=lang, domain="law") for i, (t, s, lang) in enumerate(english + chinese)]


def test_every_pair_keeps_its_entry_and_answers_with_its_statement():
    rows = entries(40)
    made = make_pairs(rows, seed=0, first_row=len(rows))
    statements = {r.id: r.text for r in rows}

    assert made.pairs == made.well_formed == sum(r.variant != CASUAL for r in made.rows)
    assert all(r.answer == statements[r.source] and r.kind == QUESTION and r.domain == "law" for r in made.rows)
    assert [r.row for r in made.rows] == list(range(len(rows), len(rows) + len(made.rows)))


def test_each_entry_has_one_held_out_phrasing_that_training_knows_from_other_entries_only():
    rows = entries(300)
    made = make_pairs(rows, seed=0, first_row=0).rows
    held_out = {r.source: r for r in made if r.split == "eval"}
    trained = [r for r in made if r.split == "train"]

    assert len(held_out) == len(rows)
    assert not {r.question for r in trained} & {r.question for r in held_out.values()}
    for variant in {r.variant for r in held_out.values()}:
        lang = next(r.lang for r in held_out.values() if r.variant == variant)
        share = sum(r.variant == variant for r in trained) / sum(r.lang == lang for r in rows)
        assert 0.08 < share < 0.22


def test_the_same_seed_makes_the_same_pairs_whatever_the_order_of_rows():
    rows = entries(30)
    asked = {(r.source, r.question, r.split) for r in make_pairs(rows, seed=3, first_row=0).rows}

    assert {(r.source, r.question, r.split) for r in make_pairs(rows[::-1], seed=3, first_row=0).rows} == asked
    assert {(r.source, r.question, r.split) for r in make_pairs(rows, seed=4, first_row=0).rows} != asked


def test_each_entry_is_also_asked_as_people_type_in_a_hurry():
    made = make_pairs(entries(40), seed=0, first_row=0).rows
    casual = {r.source: r.question for r in made if r.variant == CASUAL}

    assert len(casual) == 80
    assert not set(casual.values()) & {r.question for r in made if r.variant != CASUAL}
    assert {casually("What is DNA?", "en", dice) for dice in (0.0, 0.7, 0.9)} == {"what is dna", "What is DNA", "what is dna?"}
    assert {casually("什么是水？", "zh", dice) for dice in (0.0, 0.9)} == {"什么是水", "什么是水?"}


def test_what_somebody_asked_by_hand_is_not_asked_again():
    entry = Record(row=0, id="e", kind=ENTRY, title="Gold", text="Gold is a metal that does not rust.", lang="en")
    by_hand = Record(row=1, id="q", kind=QUESTION, question="What is gold?", answer="A metal.", lang="en", split="train")

    assert "What is gold?" not in {r.question for r in make_pairs([entry, by_hand], seed=0, first_row=2).rows}


@pytest.mark.parametrize(
    ("title", "statement", "question"),
    [
        ("Penicillin", "Penicillin was discovered by Alexander Fleming in 1928.", "Who discovered Penicillin?"),
        ("Mona Lisa", "The Mona Lisa was painted by Leonardo da Vinci.", "Who painted the Mona Lisa?"),
        ("Paris", "Paris is the capital of France.", "What is the capital of France?"),
        ("Jupiter", "Jupiter is the largest planet in the Solar System.", "What is the largest planet in the Solar System?"),
        ("Heart", "The heart pumps blood through the body.", "What does the heart pump?"),
        ("Heart", "The heart is the organ that pumps blood through the body.", "Which organ pumps blood through the body?"),
        ("Alexander Fleming", "Alexander Fleming was the Scottish doctor who discovered penicillin.", "Who discovered penicillin?"),
        ("HTTP", "HTTP stands for Hypertext Transfer Protocol.", "What does HTTP stand for?"),
        ("Photosynthesis", "The raw materials of photosynthesis are carbon dioxide and water.", "What are the raw materials of photosynthesis?"),
    ],
)
def test_a_statement_that_fits_a_pattern_gives_its_own_question(title, statement, question):
    subject = subject_of(title, statement, "en", frozenset({"photosynthesis"}))

    assert questions_from(subject, statement)[0].question == question


@pytest.mark.parametrize(
    ("title", "statement", "question"),
    [
        ("青霉素", "青霉素由弗莱明于1928年发现。", "谁发现了青霉素？"),
        ("水", "水由氢和氧组成。", "水由什么组成？"),
        ("心脏", "心脏是推动血液在全身流动的器官。", "推动血液在全身流动的器官是什么？"),
        ("李白", "李白是唐代著名的浪漫主义诗人。", "唐代著名的浪漫主义诗人是谁？"),
        ("北京", "北京是中国的首都。", "中国的首都是哪里？"),
        ("光合作用", "光合作用的原料是二氧化碳和水。", "光合作用的原料是什么？"),
    ],
)
def test_a_chinese_statement_that_fits_a_pattern_gives_its_own_question(title, statement, question):
    assert questions_from(subject_of(title, statement, "zh", frozenset()), statement)[0].question == question


@pytest.mark.parametrize(
    ("title", "statement"),
    [
        ("Gold", "Gold does not rust."),
        ("Pressure", "Pressure is the force that gases exert on a wall."),
        ("Frida Kahlo", "Frida Kahlo was the Mexican painter who is famous for her portraits."),
        ("Heart", "The heart is the organ that pumps its blood through the heart."),
    ],
)
def test_a_statement_that_fits_no_pattern_gives_no_question(title, statement):
    assert questions_from(subject_of(title, statement, "en", frozenset()), statement) == []


@pytest.mark.parametrize(
    ("question", "answer", "lang"),
    [
        ("what is gold?", "Gold is a metal.", "en"),
        ("What is the the heart?", "The heart is a muscle.", "en"),
        ("What is a apple?", "An apple is a fruit.", "en"),
        ("What is gold", "Gold is a metal.", "en"),
        ("What is {mention}?", "Gold is a metal.", "en"),
        ("What is gold (the metal?", "Gold is a metal.", "en"),
        ("What is gold?", "Gold is a metal that", "en"),
        ("What is gold?", " ", "en"),
        ("What is gold?", "金是金属。", "zh"),
    ],
)
def test_an_ill_formed_pair_is_recognised(question, answer, lang):
    assert fault_of(question, answer, lang)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=120), st.sampled_from(["en", "zh", "und"]))
def test_no_title_breaks_the_augmentation(title, text, lang):
    entry = Record(row=0, id="e", kind=ENTRY, title=title or "x", text=text or "y", lang=lang)

    made = make_pairs([entry], seed=0, first_row=1)

    assert made.well_formed <= made.pairs
