"""Every page, as it looks: accessible in both themes, no wider than its window, quiet in the console, nothing from another host."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.browser.people import PHONE, WIDE
from tests.stack import Stack

PAGES = [
    "/", "/help/", "/datasets/", "/datasets/{dataset}/", "/datasets/{dataset}/cleaned/", "/datasets/{dataset}/duplicates/",
    "/datasets/{dataset}/questions/", "/datasets/{dataset}/negatives/", "/datasets/{dataset}/records/", "/training/", "/training/new/",
    "/training/{job}/", "/training/compare/?jobs={job}", "/models/", "/models/{v1}/", "/models/{v2}/", "/models/{v2}/answers/", "/compression/",
    "/experiments/", "/experiments/{experiment}/", "/feedback/", "/chat/", "/monitoring/", "/monitoring/requests/{answer}/", "/advisor/", "/api-access/", "/users/", "/audit/",
]  # fmt: skip

LOOKS = 4

# The new theme's transitions have begun after a frame or two, and have ended.
CHANGED = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  await Promise.allSettled(document.getAnimations().map((each) => each.finished));
}"""


@pytest.fixture(scope="module")
def places(stack: Stack) -> dict[str, str]:
    """Ids of rows that pages are about."""
    versions = {row["name"]: row for row in stack.rows("/api/v1/model-versions/")}
    arms = {"control": versions["v1"]["id"], "treatment": versions["v2"]["id"]}
    answer = stack.ask("What is a tide?")
    stack.post("/api/v1/feedback/", {"answer": answer["answer"], "rating": 2, "comment": "not quite"})
    return {
        "dataset": stack.dataset()["id"], "v1": versions["v1"]["id"], "v2": versions["v2"]["id"], "job": versions["v2"]["training_job"],
        "answer": answer["answer"], "experiment": stack.post("/api/v1/experiments/", arms)["id"],
    }  # fmt: skip


def settle(page: Page) -> None:
    """Charts are drawn and fragments are in; a page that never rests is looked at as it is."""
    with suppress(PlaywrightTimeout):
        page.wait_for_load_state("networkidle", timeout=5000)


def wrong_with(page: Page) -> dict[tuple[str, str], str]:
    """Rule and element → what axe says."""
    return {
        (found["id"], str(node["target"])): f"{found['id']} ({found['impact']}): {node['html'][:200]} … {node.get('failureSummary', '')[:300]}"
        for found in Axe().run(page).response["violations"]
        for node in found["nodes"]
    }


def overflow(page: Page) -> dict[str, str]:
    width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return {"width": f"{width} px too wide"} if width > 0 else {}


def at_rest(look: Callable[[Page], dict[Any, str]], page: Page) -> list[str]:
    """What is wrong at every one of some looks. A live page swaps a table in while axe reads it, and axe then pairs colours of two moments; a chart is
    drawn anew a moment after its window has changed. On a slow machine most looks are in the middle of something, and each of another thing."""
    found = look(page)
    for _ in range(LOOKS - 1):
        if not found:
            break
        page.wait_for_timeout(1000)
        now = look(page)
        found = {what: said for what, said in found.items() if what in now}
    return list(found.values())


def look_at(page: Page) -> list[str]:
    """Light and dark, wide and on a phone."""
    found = []
    for size, name in ((WIDE, "wide"), (PHONE, "phone")):
        page.set_viewport_size(size)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            # Half-way between two themes the text has the one's colour and its ground the other's.
            page.evaluate(CHANGED)
            found += [f"{name} {theme}: {what}" for what in at_rest(wrong_with, page)]
        found += [f"{name}: {what}" for what in at_rest(overflow, page)]
    return found


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_and_fits_its_window(path, places, signed_in):
    page = signed_in()
    answer = page.goto(path.format(**places))
    assert answer.status == 200
    settle(page)
    assert page.title().endswith("DSPortal")
    assert not look_at(page)


def test_the_page_to_sign_in_is_accessible_and_fits_its_window(visit):
    page = visit()
    page.goto("/login/")
    assert not look_at(page)


def test_a_page_that_is_not_there_says_so_accessibly(signed_in, watch):
    watch.expected.add(404)
    page = signed_in()
    assert page.goto("/models/01ARZ3NDEKTSV4RRFFQ69G5FAV/").status == 404
    assert not look_at(page)


def test_pages_state_a_strict_policy_for_their_content(stack):
    policy = stack.client(None).get("/login/").headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
