"""What people come for, from the first page to the last."""

import json
import re

import httpx
from playwright.sync_api import Page, expect

from tests.browser.people import sign_in
from tests.stack import PATIENCE_SECONDS, Stack, statement_of, wait_for


def promotions(stack: Stack) -> int:
    return len(stack.rows("/api/v1/audit/", action="version.promote"))


def promote_by_page(page: Page, version: dict, **click) -> None:
    page.goto(f"/models/{version['id']}/")
    page.get_by_role("button", name=f"Promote {version['name']}").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("v1")
    dialog.get_by_role("button", name=f"Promote {version['name']}").click(**click)


def test_an_operator_sees_the_loop_promotes_asks_rates_and_finds_it_all_again(stack, visit, waiting):
    page = visit()
    page.goto("/")
    expect(page).to_have_url(re.compile("/login/"))
    sign_in(page, "admin", stack.password)
    page.wait_for_url(f"{stack.url}/")
    expect(page.get_by_role("main")).to_contain_text("v1")
    needs = page.get_by_role("main").get_by_role("link", name=re.compile("v2|Look")).first
    expect(needs).to_be_visible()

    before = promotions(stack)
    promote_by_page(page, waiting)
    expect(page.get_by_role("main")).to_contain_text("live")
    wait_for(lambda: stack.version("live")["name"] == "v2", what="version 2 is live")
    assert promotions(stack) == before + 1

    page.goto("/chat/")
    page.get_by_role("textbox").last.fill("What is a sextant?")
    page.keyboard.press("Enter")
    answer = page.locator("[data-answer]:not([data-answer=''])").last
    expect(answer.locator("[data-text]")).to_have_text(statement_of("Sextant"))
    expect(answer.locator("[data-version]")).to_have_text("v2")
    expect(answer.locator("[data-latency]")).to_have_text(re.compile(r"\d"))
    page.keyboard.press("Alt+4")
    expect(answer.get_by_role("button", name="4 of 5")).to_have_attribute("aria-pressed", "true")
    identity = answer.get_attribute("data-answer")
    wait_for(lambda: [row["rating"] for row in stack.rows("/api/v1/feedback/", answer=identity)] == [4], what="the rating's row")
    page.reload()
    expect(page.locator(f"[data-answer='{identity}']")).to_have_attribute("data-rating", "4")

    page.goto("/monitoring/?window=5m")
    expect(page.locator("[data-chart=qps] .plot-container")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("What is a sextant?")
    page.goto("/audit/")
    rows = page.get_by_role("row")
    expect(rows.filter(has_text="version.promote").first).to_contain_text("admin")
    expect(rows.filter(has_text="feedback.create").first).to_contain_text("admin")


def test_the_answer_comes_piece_by_piece(stack, signed_in, waiting):
    """The page's own stream: more than one piece before the end, so that a long answer can be read while it is written."""
    page = signed_in()
    page.goto("/chat/")
    pieces = page.evaluate(
        """async () => {
          const chat = document.querySelector("#chat");
          const response = await fetch(chat.dataset.url, {method: "POST", headers: {"Content-Type": "application/json",
            Accept: "text/event-stream", "X-CSRFToken": chat.dataset.csrf}, body: JSON.stringify({message: "What is a harbour?", version: "v2"})});
          return (await response.text()).split("\\n\\n").filter((part) => part.startsWith("data: ")).map((part) => part.slice(6));
        }"""
    )
    events = [json.loads(piece) for piece in pieces]
    assert events[0]["conversation"]
    assert events[-1]["done"]
    assert "".join(event.get("text", "") for event in events) == statement_of("Harbour")


def test_an_answer_that_breaks_off_without_a_word_says_so_and_the_question_can_be_asked_again(signed_in, waiting):
    page = signed_in()
    begun = {"conversation": "01M8J4NCW4VG78FFHGGJ4G9ZNM", "answer": "01M8J4NCW4VG78FFHGGJ4G9ZNN", "version_name": "v1", "colour": 1}
    said = "".join(f"data: {json.dumps(event)}\n\n" for event in (begun, {"text": "Half an"}))
    page.route("**/api/v1/chat/", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=said))
    page.goto("/chat/")
    field = page.get_by_role("textbox").last
    field.fill("What is a sextant?")
    page.keyboard.press("Enter")
    answer = page.locator("[data-answer]:not([data-answer=''])").last
    expect(answer).to_contain_text("Half an")
    expect(answer).to_contain_text("The connection was lost in the middle")
    expect(field).to_have_value("What is a sextant?")
    expect(answer.get_by_role("button", name="4 of 5")).to_be_hidden()


def test_a_wrong_password_is_refused_in_words(visit):
    page = visit()
    sign_in(page, "admin", "not the password")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("admin")
    expect(page).to_have_url(re.compile("/login/"))


def test_a_double_click_promotes_once(stack, signed_in, waiting):
    before = promotions(stack)
    page = signed_in()
    promote_by_page(page, waiting, click_count=2)
    wait_for(lambda: stack.version("live")["name"] == "v2", what="version 2 is live")
    page.wait_for_load_state()
    assert promotions(stack) == before + 1
    assert not stack.rows("/api/v1/audit/", action="version.promotion_refused")


def test_a_promotion_in_one_browser_shows_in_the_other_and_is_not_done_again(stack, signed_in, waiting):
    before = promotions(stack)
    here, there = signed_in(), signed_in()
    there.goto("/models/")
    row = there.get_by_role("row").filter(has_text="v2").first
    expect(row).to_contain_text("candidate" if waiting["state"] == "candidate" else "retired")
    late = signed_in()
    late.goto(f"/models/{waiting['id']}/")
    token = late.locator("#promote [name=csrfmiddlewaretoken]").input_value()

    promote_by_page(here, waiting)
    expect(row).to_contain_text("live")
    refused = late.request.post(f"/models/{waiting['id']}/promote/", form={"csrfmiddlewaretoken": token}, headers={"Referer": late.url})
    assert "live already" in refused.text()
    assert promotions(stack) == before + 1


def test_a_viewer_reads_everything_and_changes_nothing(stack, signed_in, viewer, waiting, watch):
    page = signed_in(*viewer)
    writes = re.compile("Promote|Evaluate|Compress|Upload|Process|Train|Start|Stop|Roll back|Cancel|Resume|Make a dataset|Plan")
    for path in ("/", "/datasets/", f"/datasets/{stack.dataset()['id']}/", "/training/", "/models/", f"/models/{waiting['id']}/", "/compression/",
                 "/experiments/", "/feedback/", "/monitoring/"):  # fmt: skip
        assert page.goto(path).status == 200, path
        assert not page.get_by_role("main").get_by_role("button", name=writes).all(), path
    assert not page.get_by_role("link", name="Users").all()
    watch.expected |= {403}
    assert page.goto("/users/").status == 403
    refused = page.evaluate(
        """async (path) => (await fetch(path, {method: "POST", headers: {
          "X-CSRFToken": document.cookie.match(/csrftoken=([^;]+)/)?.[1] ?? ""}})).status""",
        f"/models/{waiting['id']}/promote/",
    )
    assert refused == 403
    assert stack.version("live")["name"] == "v1"


def test_a_file_is_uploaded_processed_and_reported_by_the_pages(signed_in, tmp_path):
    file = tmp_path / "towers.jsonl"
    rows = [{"title": f"Tower {n}", "text": f"Tower {n} is a beacon of {n * 7} steps on the coast.", "domain": "towers"} for n in range(30)]
    rows.append({"text": "Towers stand on the coast and are looked after by keepers who climb their many steps twice a day."})
    rows.append(rows[-1])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = signed_in()
    page.goto("/datasets/")
    page.locator("#id_file").set_input_files(file)
    page.get_by_role("main").get_by_label("Name", exact=True).fill("Towers by the sea")
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url(re.compile(r"/datasets/\w+/"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Towers by the sea")
    expect(page.get_by_role("heading", name="From raw to used")).to_be_visible(timeout=PATIENCE_SECONDS * 1000)  # a job, after those before it
    expect(page.get_by_role("main")).to_contain_text("32")
    page.get_by_role("link", name=re.compile("Duplicates")).first.click()
    expect(page.get_by_role("main")).to_contain_text("looked after by keepers")


def test_a_file_that_cannot_be_read_is_refused_with_the_reason_and_what_was_typed_stays(signed_in, tmp_path, watch):
    watch.expected |= {400, 422}
    file = tmp_path / "broken.jsonl"
    file.write_bytes(bytes(range(256)) * 20)
    page = signed_in()
    page.goto("/datasets/")
    page.locator("#id_file").set_input_files(file)
    page.get_by_role("main").get_by_label("Name", exact=True).fill("not text")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator(".field-error, .form-error").filter(has_text=re.compile(r"\w")).first).to_be_visible()
    expect(page.get_by_role("main").get_by_label("Name", exact=True)).to_have_value("not text")


def test_a_token_is_shown_once_works_and_is_revoked(stack, signed_in):
    page = signed_in()
    page.goto("/api-access/")
    page.get_by_label("New token for").fill("a nightly script")
    page.get_by_role("button", name="Make a token").click()
    token = page.locator("#new-token").inner_text().strip()
    with httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        assert http.get("/api/v1/me/").json()["username"] == "admin"
        page.goto("/api-access/")
        assert token not in page.content()
        row = page.get_by_role("row").filter(has_text="a nightly script")
        row.get_by_role("button", name="Revoke").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(row).to_contain_text("revoked")
        wait_for(lambda: http.get("/api/v1/me/").status_code == 401, what="the revoked token is refused")


def test_everything_is_reached_by_keys(signed_in, waiting):
    page = signed_in()
    page.goto("/")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    page.get_by_role("combobox").fill("v2")
    expect(page.get_by_role("option").first).to_contain_text("v2")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/models/"))


def test_without_scripts_one_reads_asks_and_rates(stack, states, signed_in):
    signed_in()
    page = signed_in(java_script_enabled=False)
    page.goto("/chat/")
    page.get_by_role("textbox").last.fill("What is a crust?")
    page.locator("#composer button[type=submit]").last.click()
    expect(page.locator("[data-answer] [data-text]").last).to_have_text(re.compile(r"\w"))
    page.locator("[data-answer]").last.get_by_role("button", name="3 of 5").click()
    expect(page.locator("[data-answer]").last).to_have_attribute("data-rating", "3")
    for path in ("/", "/models/", "/datasets/", "/audit/"):
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
