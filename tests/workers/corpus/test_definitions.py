import pytest

from workers.corpus.definitions import definition_in, entries_in
from workers.corpus.records import DOCUMENT, Record


@pytest.mark.parametrize(
    ("text", "lang", "subject"),
    [
        ("gedit is a text editor for the GNOME desktop. It supports many languages.", "en", "gedit"),
        ("The heart is the organ that pumps blood through the body.", "en", "heart"),
        ("Black holes are the remains of very large stars.", "en", "Black holes"),
        ("光合作用是植物利用阳光制造糖的过程。它需要水。", "zh", "光合作用"),
        ("二胡是一种只有两根弦的乐器。", "zh", "二胡"),
    ],
)
def test_a_text_that_opens_with_a_definition_names_its_subject(text, lang, subject):
    assert definition_in(text, lang)[0] == subject


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("This package is a text editor for the GNOME desktop.", "en"),
        ("There is a river in the north of the country.", "en"),
        ("It was a dark night in the old town by the sea.", "en"),
        ("The purpose of this library is a fast reader of files.", "en"),
        ("Install it first. gedit is a text editor for the desktop.", "en"),
        ("Gold is a metal.", "en"),
        ("A very long subject that nobody would ever ask about in this form is a thing of the past.", "en"),
        ("这是一种只有两根弦的乐器。", "zh"),
        ("目的是一种让人容易理解的说明方法。", "zh"),
    ],
)
def test_what_points_elsewhere_or_says_too_little_is_no_definition(text, lang):
    assert definition_in(text, lang) == (None, None)


def test_each_subject_is_asked_about_once_and_by_its_document():
    rows = [
        Record(row=n, id=f"d{n}", kind=DOCUMENT, text=text, lang="en")
        for n, text in enumerate(["Gedit is a text editor for the desktop.", "gedit is an old tool for writing text."])
    ]

    assert [(e.id, e.title, e.text) for e in entries_in(rows)] == [("d0", "Gedit", "Gedit is a text editor for the desktop.")]
