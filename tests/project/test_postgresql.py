"""The apps' tests once more, on PostgreSQL: the database of every larger installation.

Not those that only knock at every address with what nobody should send: they are half of all, and stop before the database.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres import postgres, programs
from tests.stack import clean_environment

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed (Debian: postgresql)")
@pytest.mark.timeout(1800)  # of a machine that is slow and busy: a hang, not a delay
def test_the_apps_work_on_postgresql():
    with postgres() as url:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=3", "--tb=short", "tests/apps", "--ignore=tests/apps/test_api_bad_input.py"],
            cwd=REPOSITORY, env=clean_environment() | {"DATABASE_URL": url}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
