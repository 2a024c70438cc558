"""What is for browsers goes round services, and protects people as before."""

import pytest

from tests.apps.conftest import Api

pytestmark = pytest.mark.django_db
NAME = {"name": "mine"}


@pytest.fixture
def browser(viewer) -> Api:
    """Somebody signed in, whose browser is checked for forgery."""
    client = Api()
    client.handler.enforce_csrf_checks = True
    client.force_login(viewer)
    return client


def test_a_session_without_the_forms_secret_changes_nothing(browser):
    assert browser.post("/api/v1/tokens/", NAME).status_code == 403


@pytest.mark.parametrize("header", ["Bearer nobody's", "bearer x", "Bearer "])
def test_a_session_does_not_count_beside_a_token_that_is_none(browser, header):
    refused = browser.post("/api/v1/tokens/", NAME, HTTP_AUTHORIZATION=header)
    assert refused.status_code == 401
    assert refused["Content-Type"] == "application/problem+json"


def test_a_page_asked_for_with_a_token_is_a_browsers_page(browser):
    assert browser.post("/logout/", HTTP_AUTHORIZATION="Bearer x").status_code == 403
    assert "script-src 'self'" in browser.get("/", HTTP_AUTHORIZATION="Bearer x")["Content-Security-Policy"]


def test_a_service_gets_no_cookie_and_a_policy_for_what_is_no_page(as_viewer):
    answer = as_viewer.get("/api/v1/tokens/", HTTP_ACCEPT_LANGUAGE="zh-hans")
    assert answer.status_code == 200
    assert not answer.cookies
    assert answer["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer["Content-Language"] == "zh-hans"
    assert {"X-Request-Id", "X-Frame-Options", "X-Content-Type-Options"} <= set(answer.headers)


def test_an_error_page_for_a_service_is_a_problem_document(as_viewer):
    assert as_viewer.get("/api/v1/nothing/").json()["status"] == 404
