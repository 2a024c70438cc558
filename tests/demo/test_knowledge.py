"""The knowledge base of the demonstration: what a newcomer hears the model say."""

import itertools
import re
from collections import Counter
from functools import cache
from pathlib import Path

import orjson
import pytest

from workers.corpus.augment import make_pairs
from workers.corpus.deduplicate import MIN_JACCARD, deduplicate, jaccard
from workers.corpus.languages import language_of
from workers.corpus.minhash import HAN_SHINGLE, LATIN_SHINGLE, shingle_hashes
from workers.corpus.negatives import BROKEN_LOGIC, WRONG_FACT, WRONG_NUMBER, make_claims
from workers.corpus.records import ENTRY, Record, normalised, parse
from workers.corpus.splits import TRAIN
from workers.corpus.subjects import PERSON, lower_case_words, subject_of

FOLDER = Path(__file__).parents[2] / "demo" / "knowledge"
FIELDS = {"id", "title", "text", "domain", "lang"}
# A stop inside a number or an abbreviation ends no sentence; one before a space or a Han character does.
ENDS = re.compile(r"[.!?](?=\s|$)|[。！？]")


@cache
def entries() -> tuple[Record, ...]:
    lines = [line for path in sorted(FOLDER.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    return tuple(parse(row, orjson.loads(line)) for row, line in enumerate(lines))


def test_a_file_holds_one_domain_and_a_line_one_entry_with_its_five_fields_and_no_escapes():
    for path in FOLDER.glob("*.jsonl"):
        lines = path.read_text("utf-8").splitlines()
        rows = [orjson.loads(line) for line in lines]
        assert {row["domain"] for row in rows} == {path.stem}
        assert all(row.keys() == FIELDS and all(row.values()) for row in rows)
        assert [row["id"] for row in rows] == [f"{path.stem}-{n:03}" for n in range(1, len(rows) + 1)]
        assert not any("\\u" in line for line in lines)


def test_it_is_broad_and_two_thirds_english_in_every_domain():
    assert 620 <= len(entries()) <= 660
    per_domain = Counter((e.domain, e.lang) for e in entries())
    assert len({e.domain for e in entries()}) >= 26
    assert all(0.6 <= per_domain[domain, "en"] / (per_domain[domain, "en"] + per_domain[domain, "zh"]) <= 0.72 for domain, _ in per_domain)


def test_ids_titles_and_statements_are_unique():
    assert max(Counter(e.id for e in entries()).values()) == 1
    assert [title for title, n in Counter((e.lang, normalised(e.title or "")) for e in entries()).items() if n > 1] == []
    assert [text for text, n in Counter(normalised(e.text or "") for e in entries()).items() if n > 1] == []


def test_a_statement_is_one_short_sentence_in_its_language():
    for e in entries():
        text = e.text or ""
        assert len(ENDS.findall(text)) == 1 and text.endswith("。" if e.lang == "zh" else "."), text
        assert (10 <= len(text) <= 40) if e.lang == "zh" else (8 <= len(text.split()) <= 22), text
        assert language_of(text) == e.lang == language_of(e.title or ""), text
        assert text == " ".join(text.split()), text


def test_no_two_statements_are_near_duplicates_whatever_their_titles():
    assert [r.id for r in deduplicate(list(entries())) if not r.kept] == []
    shingles = [(e.id, set(shingle_hashes(normalised(e.text or ""), HAN_SHINGLE if e.lang == "zh" else LATIN_SHINGLE).tolist())) for e in entries()]
    assert [(a, b) for (a, left), (b, right) in itertools.combinations(shingles, 2) if jaccard(left, right) >= MIN_JACCARD] == []


def test_a_statement_begins_with_its_subject_unless_its_title_is_a_question():
    lower = lower_case_words(e.content for e in entries() if e.lang != "zh")
    for e in entries():
        if not (e.title or "").endswith(("?", "？")):
            assert subject_of(e.title or "", e.text or "", e.lang or "", lower).predicate, e.text


def test_its_questions_are_well_formed_and_every_entry_is_asked_about():
    made = make_pairs(list(entries()), seed=0, first_row=0)
    assert made.well_formed >= 0.99 * made.pairs
    assert {row.source for row in made.rows} == {e.id for e in entries() if e.kind == ENTRY}


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What is photosynthesis?", "carbon dioxide and water"),
        ("光合作用的原料是什么？", "二氧化碳和水"),
        ("Which organ pumps blood?", "heart"),
        ("What is gravity?", "force"),
        ("What is water?", "hydrogen and oxygen"),
        ("What is a mixture of experts?", "router"),
        ("谁提出了元素周期表？", "门捷列夫"),
    ],
)
def test_what_a_newcomer_asks_first_is_taught(question: str, said: str):
    answers = {answer for seed in range(4) for q, answer in taught(seed) if q == question}
    assert len(answers) == 1 and said in answers.pop()


@cache
def taught(seed: int) -> frozenset[tuple[str, str]]:
    """The questions and answers of the training split."""
    return frozenset((row.question or "", row.answer or "") for row in make_pairs(list(entries()), seed=seed, first_row=0).rows if row.split == TRAIN)


def test_falsehoods_of_all_three_kinds_can_be_made_of_it():
    variants = Counter(claim.variant for claim in make_claims(list(entries()), seed=0, first_row=0))
    assert variants[WRONG_FACT] > 300 and variants[WRONG_NUMBER] and variants[BROKEN_LOGIC]


def test_many_statements_hold_a_figure_that_can_be_changed():
    assert sum(bool(re.search(r"\d{2}", e.text or "")) for e in entries()) >= 60


def test_people_are_asked_about_with_who_in_both_languages():
    lower = lower_case_words(e.content for e in entries() if e.lang != "zh")
    people = Counter(e.lang for e in entries() if subject_of(e.title or "", e.text or "", e.lang or "", lower).kind == PERSON)
    assert people["en"] >= 30 and people["zh"] >= 12
