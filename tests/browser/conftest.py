"""A real browser on a real portal. Every page that a test opens is watched: an error in its console fails the test."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.people import WIDE, Watch, sign_in
from tests.stack import Stack, running_copy

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --no-sandbox "
    "--disable-dev-shm-usage"
)
TIMEOUT_MS = 60_000  # the machine may be slow; what is waited for comes in a moment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if not CHROMIUM:
                item.add_marker(pytest.mark.skip(reason="chromium is not installed"))


@pytest.fixture(scope="package")
def stack(trained_home: Path, tmp_path_factory) -> Iterator[Stack]:
    """One portal for this folder's tests, with version 1 live and version 2 waiting."""
    yield from running_copy(trained_home, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # Of the package, not of the session: while Playwright runs, Django believes to be in an event loop and refuses its database.
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=TIMEOUT_MS)
        yield chromium
        chromium.close()


@pytest.fixture
def watch(stack: Stack) -> Iterator[Watch]:
    watch = Watch(stack.url)
    yield watch
    assert not watch.faults


@pytest.fixture
def visit(browser: Browser, stack: Stack, watch: Watch) -> Iterator[Callable[..., Page]]:
    """Opens a page in a browser of its own (its own cookies), signed in as nobody."""
    contexts: list[BrowserContext] = []

    def open_page(**options) -> Page:
        context = browser.new_context(base_url=stack.url, reduced_motion="reduce", **{"viewport": WIDE, **options})
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        watch.on(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="package")
def states() -> dict[str, dict]:
    """Cookies of those who signed in once: by user."""
    return {}


@pytest.fixture
def signed_in(visit, stack: Stack, states) -> Callable[..., Page]:
    """Opens a page as a user, who signs in by the form the first time."""

    def open_page(user: str = "admin", password: str | None = None, **options) -> Page:
        if user in states:
            return visit(storage_state=states[user], **options)
        page = visit(**options)
        sign_in(page, user, password or stack.password)
        page.wait_for_url(f"{stack.url}/")
        states[user] = page.context.storage_state()
        return page

    return open_page


@pytest.fixture
def waiting(stack: Stack) -> dict:
    """Version 2, with version 1 live: taken back where a test before promoted it."""
    v1, v2 = (next(row for row in stack.rows("/api/v1/model-versions/") if row["name"] == name) for name in ("v1", "v2"))
    if v1["state"] != "live":
        stack.post(f"/api/v1/model-versions/{v2['id']}/rollback/")
    assert stack.gate(v2["id"])["passed"]
    return v2


@pytest.fixture(scope="package")
def viewer(stack: Stack) -> tuple[str, str]:
    """Name and password of one who may only read."""
    user = ("reader", "Reads-everything-5")
    stack.post("/api/v1/users/", {"username": user[0], "password": user[1], "role": "viewer"})
    return user
