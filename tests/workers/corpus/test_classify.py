import random

import pytest

from workers.corpus.classify import GENERAL, classify
from workers.corpus.domain_words import known_words, words_of_text
from workers.corpus.records import DOCUMENT, Record

FIELDS = {
    "ocean science": "tide reef whale current salt wave harbour fish",
    "tax_law": "court judge statute clause appeal tax levy duty",
    "烹饪": "油锅 炒菜 盐巴 酱油 面团 蒸笼 火候 汤勺",
}


def rows(count: int, labelled: bool = True) -> list[Record]:
    rng = random.Random(count)
    made = []
    for n in range(count):
        domain = sorted(FIELDS)[n % len(FIELDS)]
        text = " ".join(rng.choices(FIELDS[domain].split(), k=6))
        made.append(Record(row=n, id=f"d{n}-{labelled}", kind=DOCUMENT, text=text, domain=domain if labelled else None, lang="en"))
    return made


def test_rows_without_a_domain_get_the_right_one_and_labelled_rows_keep_theirs(tmp_path):
    labelled, unlabelled = rows(120), rows(30, labelled=False)
    odd = Record(row=999, id="odd", kind=DOCUMENT, text="court judge statute", domain="ocean science")

    done, report = classify([*labelled, *unlabelled, odd], tmp_path, seed=0)

    assert [r.domain for r in done[120:150]] == [sorted(FIELDS)[n % 3] for n in range(30)]
    assert done[-1].domain == "ocean science"
    assert (report.labelled, report.unsure) == (30, 0)


def test_accuracy_is_measured_on_held_out_texts_for_each_domain(tmp_path):
    _, report = classify(rows(150), tmp_path, seed=0)

    assert report.accuracy == 1.0
    assert set(report.per_domain) == set(FIELDS)
    assert sum(report.held_out_rows.values()) == report.held_out
    assert 10 < report.held_out < 60


def test_labels_without_meaning_are_not_learnt(tmp_path):
    """The measure can fail: with labels dealt by chance the accuracy is that of guessing."""
    rng = random.Random(5)
    texts = ["".join(rng.choices("abcdefghij", k=5)) + " " + "".join(rng.choices("klmnopqrst", k=5)) for _ in range(300)]
    dealt = [Record(row=n, id=str(n), kind=DOCUMENT, text=text, domain=rng.choice(["a", "b", "c", "d"])) for n, text in enumerate(texts)]

    _, report = classify(dealt, tmp_path, seed=0)

    assert report.accuracy < 0.5


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("The judge told the jury that the accused person was innocent until proven guilty in court.", "law"),
        ("The surgeon examined the patient in the hospital and prescribed a drug against the infection.", "medicine"),
        ("望远镜拍到了银河系里一颗遥远的恒星和围绕它的行星。", "astronomy"),
        ("面团发酵以后放进烤箱，烤成松软的面包。", "food"),
        ("Xqzt vbnw.", GENERAL),
    ],
)
def test_a_data_set_without_labels_is_sorted_by_known_words(tmp_path, text, domain):
    done, report = classify([Record(row=0, id="r", kind=DOCUMENT, text=text)], tmp_path, seed=0)

    assert done[0].domain == domain
    assert report.accuracy is None


def test_the_same_seed_gives_the_same_domains(tmp_path):
    mixed = rows(60) + rows(20, labelled=False)

    assert classify(mixed, tmp_path / "a", seed=3)[0] == classify(mixed, tmp_path / "b", seed=3)[0]


def test_more_than_twenty_fields_are_known_in_two_languages():
    words = known_words()

    assert len(words) >= 20
    assert all(sum(w.isascii() for w in own) >= 30 and sum(not w.isascii() for w in own) >= 15 for own in words.values())


def test_telling_words_are_stems_and_chinese_pairs():
    assert words_of_text("The Judges judged it; 法院判决") == "judg judg 法院 院判 判决"
