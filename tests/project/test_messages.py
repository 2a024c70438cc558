"""The portal in its second language: whole, in step with the sources, and with every hole where its sentence has one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polib
import pytest

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / "locale" / "zh_Hans" / "LC_MESSAGES" / "django.po"
HOLE = re.compile(r"%\(\w+\)[a-z]|%%\{[^}]*\}|\{\w*\}|</?\w+>")


def read() -> polib.POFile:
    return polib.pofile(CATALOGUE)


def said(entry: polib.POEntry) -> list[str]:
    return list(entry.msgstr_plural.values()) if entry.msgid_plural else [entry.msgstr]


def test_every_message_is_translated_and_none_is_a_guess():
    entries = read()

    assert [e.msgid for e in entries if e.obsolete or e.fuzzy or not all(said(e))] == []


def test_a_translation_has_the_holes_of_its_message():
    wrong = [e.msgid for e in read() for text in said(e) if sorted(HOLE.findall(text)) != sorted(HOLE.findall(e.msgid_plural or e.msgid))]

    assert wrong == []


def test_what_is_compiled_is_what_is_written():
    compiled = polib.mofile(CATALOGUE.with_suffix(".mo"))

    assert {e.msgid: said(e) for e in compiled} == {e.msgid: said(e) for e in read()}


@pytest.mark.skipif(shutil.which("xgettext") is None, reason="xgettext, of the package gettext, reads the sources")
def test_the_sources_say_nothing_that_the_catalogue_does_not_know(tmp_path):
    for folder in ("apps", "dsportal", "workers", "templates", "locale"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", tmp_path)
    command = [sys.executable, "manage.py", "makemessages", "-l", "zh_Hans", "--no-location", "--keep-pot"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"DSPORTAL_HOME": str(tmp_path / "home")}, check=True)

    found = {e.msgid for e in polib.pofile(tmp_path / "locale" / "django.pot")}

    assert found - {e.msgid for e in read()} == set()
