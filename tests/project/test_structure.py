"""The rules that keep the repository in order, as its own tools check them."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polib
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCALE = REPOSITORY / "locale"


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=REPOSITORY, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def test_no_package_imports_against_the_direction():
    done = run(str(Path(sys.executable).with_name("lint-imports")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_light_processes_import_no_torch():
    """Web, beat and the jobs worker wait on small machines: PyTorch alone holds more memory than all of them."""
    script = (
        "import django, sys; django.setup(); import dsportal.urls, dsportal.supervisor, workers.tasks.jobs, workers.tasks.beat, workers.tasks.answers; "
        "sys.exit(', '.join({'torch', 'transformers', 'onnxruntime', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = run(sys.executable, "-c", script, DJANGO_SETTINGS_MODULE="dsportal.settings")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_change_of_a_model_has_its_migration(tmp_path):
    done = run(sys.executable, "manage.py", "makemigrations", "--check", "--dry-run", DSPORTAL_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_requirement_is_locked_to_one_version(name):
    asked = {_plain(line) for line in _lines(f"{name}.in")}
    assert not asked - {_plain(package) for package in _locked(name)}


def test_what_tests_need_agrees_with_what_the_portal_runs_on():
    """`make test` installs both locks into one environment."""
    runs, tests = _locked("requirements"), _locked("requirements-dev")
    assert not {package: (runs[package], tests[package]) for package in runs.keys() & tests.keys() if runs[package] != tests[package]}


def _locked(name: str) -> dict[str, str]:
    """Package → version. Raises ValueError at a line that does not lock one."""
    return dict(line.split(";")[0].strip().split("==") for line in _lines(f"{name}.lock"))


def _lines(file: str) -> list[str]:
    text = (REPOSITORY / file).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", "-", "--"))]


def _plain(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_presets_are_what_the_model_counts():
    from workers.moe.parameters import describe_presets

    assert json.loads((REPOSITORY / "workers/moe/presets.json").read_text()) == describe_presets()


def test_the_large_preset_has_128_billion_parameters_of_which_16_billion_are_active():
    from workers.moe.config import PRESETS
    from workers.moe.parameters import count_parameters

    total, active = count_parameters(PRESETS["moe-128b-a16b"])
    assert total == pytest.approx(128e9, rel=0.02)
    assert active == pytest.approx(16e9, rel=0.02)


def test_nothing_is_unpickled():
    """A checkpoint from elsewhere must not be able to run code."""
    found = []
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("torch.load", "pickle.load", "pickle.loads", "joblib.load") or called.endswith(".read_pickle"):
                found.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert not found


def test_no_drawer_for_odds_and_ends():
    assert not [path for path in _sources() if {"utils", "helpers", "common", "misc"} & {*path.parts, path.stem}]


def _sources() -> list[Path]:
    return [path for folder in ("apps", "workers", "dsportal") for path in (REPOSITORY / folder).rglob("*.py")]


def test_every_metric_is_named_in_one_place():
    names = (REPOSITORY / "apps/monitoring/names.py").read_text()
    elsewhere = [
        path for path in _sources() if path.name != "names.py" and re.search(r'"dsportal_[a-z_]+_(total|seconds|bytes|depth)"', path.read_text())
    ]
    assert not elsewhere
    assert "dsportal_requests_total" in names


def test_the_django_line_is_the_long_term_one():
    assert _locked("requirements")["django"].startswith("5.2.")


class TestTranslations:
    @pytest.fixture(scope="class")
    def chinese(self):
        return polib.pofile(str(LOCALE / "zh_Hans/LC_MESSAGES/django.po"))

    def test_every_string_is_translated_and_none_is_only_guessed(self, chinese):
        assert not [entry.msgid for entry in chinese.untranslated_entries()]
        assert not [entry.msgid for entry in chinese.fuzzy_entries()]

    def test_placeholders_survive_translation(self, chinese):
        wrong = []
        for entry in chinese:
            for text in [entry.msgstr, *entry.msgstr_plural.values()]:
                wanted = set(re.findall(r"%\(\w+\)[sd]|\{\w*\}", entry.msgid_plural or entry.msgid))
                given = set(re.findall(r"%\(\w+\)[sd]|\{\w*\}", text))
                if text and not given <= wanted | set(re.findall(r"%\(\w+\)[sd]|\{\w*\}", entry.msgid)):
                    wrong.append((entry.msgid, text))
        assert not wrong

    def test_the_compiled_file_is_made_of_the_source(self, chinese):
        compiled = {entry.msgid: entry.msgstr for entry in polib.mofile(str(LOCALE / "zh_Hans/LC_MESSAGES/django.mo"))}
        assert compiled == {entry.msgid: entry.msgstr for entry in chinese if not entry.obsolete}
