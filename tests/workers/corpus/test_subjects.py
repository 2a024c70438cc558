import pytest

from workers.corpus.phrasing import ask, templates_for
from workers.corpus.subjects import lower_case_words, statement_of, subject_of

NOTHING_KNOWN: frozenset[str] = frozenset()


def first_question(title: str, statement: str, lang: str = "en", known: frozenset[str] = NOTHING_KNOWN) -> str:
    subject = subject_of(title, statement, lang, known)
    return ask(subject, templates_for(subject).first).question


@pytest.mark.parametrize(
    ("title", "statement", "question"),
    [
        ("Photosynthesis", "Photosynthesis is the process by which plants make sugar.", "What is photosynthesis?"),
        ("Heart", "The heart is a muscular organ that pumps blood.", "What is the heart?"),
        ("Black holes", "Black holes are regions of space that no light leaves.", "What are black holes?"),
        ("Antibiotics", "Antibiotics kill bacteria.", "What are antibiotics?"),
        ("Physics", "Physics studies matter and energy.", "What is physics?"),
        ("Hour", "An hour is a unit of time of 60 minutes.", "What is an hour?"),
        ("Isaac Newton", "Isaac Newton was an English physicist who described gravity.", "Who was Isaac Newton?"),
        ("French Revolution", "The French Revolution was a period of upheaval.", "What was the French Revolution?"),
        ("The Great Wall", "The Great Wall was built over many centuries.", "What is the Great Wall?"),
        ("Socrates", "Socrates was the Greek philosopher who taught by asking questions.", "Who was Socrates?"),
        ("Buddhism", "Buddhism is a religion that began in India.", "What is Buddhism?"),
        ("DNA", "DNA is a molecule that carries genes.", "What is DNA?"),
        ("Paris", "Paris is the capital of France.", "What is Paris?"),
        ("Newton's second law", "Newton's second law states that force is mass times acceleration.", "What is Newton's second law?"),
        ("Why is the sky blue?", "Air scatters blue light more than red light.", "Why is the sky blue?"),
        ("How vaccines work", "Vaccines train the immune system.", "Can you explain how vaccines work?"),
    ],
)
def test_an_english_title_is_asked_about_grammatically(title, statement, question):
    assert first_question(title, statement) == question


@pytest.mark.parametrize(
    ("title", "statement", "question"),
    [
        ("光合作用", "光合作用是植物利用阳光制造糖的过程。", "什么是光合作用？"),
        ("牛顿", "牛顿是提出万有引力定律的英国物理学家。", "牛顿是谁？"),
        ("中国", "中国是世界上人口众多的国家。", "什么是中国？"),
        ("天文学家", "天文学家是研究天体的科学家。", "什么是天文学家？"),
        ("为什么天空是蓝色的", "因为空气散射蓝光更多。", "为什么天空是蓝色的？"),
    ],
)
def test_a_chinese_title_is_asked_about_grammatically(title, statement, question):
    assert first_question(title, statement, "zh") == question


def test_the_case_of_a_word_is_learned_from_how_the_texts_write_it():
    known = lower_case_words(["They say the insulin in the blood and insulin in a pen differ.", "We live in Berlin."])

    assert first_question("Insulin", "Insulin lowers the sugar in the blood.", known=known) == "What is insulin?"
    assert first_question("Berlin", "Berlin lies on the Spree.", known=known) == "What is Berlin?"


def test_a_long_text_is_cut_at_the_end_of_a_sentence():
    text = "The first sentence is short. " + "The second one goes on and on and on about nothing in particular at all, " * 4 + "and ends."

    assert statement_of(text, "en") == "The first sentence is short."
    assert statement_of("短句。" + "很长的句子，" * 30 + "完。", "zh") == "短句。"
