"""How `make test` shares the tests out to two processes (pytest-xdist, `-n 2`): a file at a time, but all that need a running portal together.

Those share a trained home, and promise times that two portals at once would not keep. They begin first, as they take longest; then
the file that runs the apps' tests on PostgreSQL, then the others, so that both processes end at about the same time.
"""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

WITH_A_PORTAL = ("tests/journeys/", "tests/faults/", "tests/browser/")
LONG = "tests/project/test_postgresql.py"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # The processes inherit the environment. With this in it Django would be set up there before their conftest gives them homes of their own.
        del os.environ["DJANGO_SETTINGS_MODULE"]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    if plugins.unregister(name="terminaldistreporter"):  # that processes start is no news; one that dies fails its test
        plugins.getplugin("dsession").terminal = None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (not item.nodeid.startswith(WITH_A_PORTAL), not item.nodeid.startswith(LONG)))


class ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "with a portal" if nodeid.startswith(WITH_A_PORTAL) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> ByFile:
    return ByFile(config, log)
