"""Signing in, tokens, users and the audit log in the browser."""

import csv
import io
import re

import pytest
from django.test import Client
from django.utils.translation import override

from apps.accounts.models import ApiToken, AuditEntry, User
from apps.accounts.reference import endpoints
from apps.portal.retelling import retold
from tests.apps import making


@pytest.fixture
def admin_page(admin) -> Client:
    client = Client()
    client.force_login(admin)
    return client


@pytest.fixture
def viewer_page(viewer) -> Client:
    client = Client()
    client.force_login(viewer)
    return client


def test_a_wrong_password_is_said_and_the_name_is_kept(admin):
    page = Client().post("/login/", {"username": "admin", "password": "wrong"})
    assert "do not belong together" in page.content.decode()
    assert 'value="admin"' in page.content.decode()


def test_signing_in_leads_to_the_page_that_was_asked_for(admin):
    client = Client()
    answer = client.post("/login/?next=/audit/", {"username": "admin", "password": "a-password-for-tests", "next": "/audit/"})
    assert answer["Location"] == "/audit/"


def test_signing_out_needs_a_post(admin_page):
    assert admin_page.get("/logout/").status_code == 405
    assert admin_page.post("/logout/")["Location"] == "/login/"
    assert admin_page.get("/")["Location"].startswith("/login/")


def test_a_new_token_is_shown_once_and_works(viewer_page):
    page = viewer_page.post("/api-access/", {"name": "nightly import"}).content.decode()
    token = re.search(r'id="new-token"[^>]*>(dsp_[\w-]+)<', page)[1]
    assert Client().get("/api/v1/datasets/", HTTP_AUTHORIZATION=f"Bearer {token}").status_code == 200
    assert token not in viewer_page.get("/api-access/").content.decode()


def test_a_token_without_a_name_is_refused_at_its_field(viewer_page):
    page = viewer_page.post("/api-access/", {"name": "  "}).content.decode()
    assert "field-error" in page
    assert not ApiToken.objects.exists()


def test_nobody_but_its_owner_or_an_administrator_revokes_a_token(admin, viewer_page, admin_page):
    admin_page.post("/api-access/", {"name": "mine"})
    token = ApiToken.objects.get()
    assert viewer_page.post(f"/api-access/{token.pk}/revoke/").status_code == 403
    admin_page.post(f"/api-access/{token.pk}/revoke/")
    token.refresh_from_db()
    assert token.revoked_at


def test_the_examples_carry_the_readers_own_address(viewer_page):
    page = viewer_page.get("/api-access/", HTTP_HOST="portal.example.org:8443").content.decode()
    assert "curl -s http://portal.example.org:8443/api/v1/generate/" in page


def test_every_call_of_the_interface_is_described_in_both_languages():
    calls = [call for _resource, calls in endpoints() for call in calls]

    assert [(call.method, call.path) for call in calls if not call.summary] == []
    with override("zh-hans"):
        assert [call.summary for call in calls if retold(call.summary) == call.summary] == []


def test_what_changes_something_is_not_described_as_what_it_changes():
    for _resource, calls in endpoints():
        reading = {call.summary for call in calls if call.method == "GET"}
        assert [(call.method, call.path) for call in calls if call.method != "GET" and call.summary in reading] == []


def test_the_table_of_endpoints_is_made_of_the_schema(viewer_page):
    assert "/api/v1/model-versions/" in viewer_page.get("/api-access/endpoints/").content.decode()


def test_an_administrator_adds_a_user_who_then_signs_in(admin_page):
    admin_page.post("/users/", {"username": "olga", "role": "operator", "password": "long-enough-word-7"})
    assert User.objects.get(username="olga").role == "operator"
    assert Client().post("/login/", {"username": "olga", "password": "long-enough-word-7"}).status_code == 302


def test_a_weak_password_is_refused_at_its_field_and_the_name_is_kept(admin_page):
    page = admin_page.post("/users/", {"username": "olga", "role": "viewer", "password": "12345678"}).content.decode()
    assert 'id="id_password_error"' in page
    assert 'value="olga"' in page


def test_a_user_who_is_switched_off_is_signed_out(admin_page, viewer, viewer_page):
    admin_page.post(f"/users/{viewer.pk}/active/", {"active": "0"})
    assert viewer_page.get("/")["Location"].startswith("/login/")


def test_an_administrator_cannot_lock_themselves_out(admin, admin_page):
    admin_page.post(f"/users/{admin.pk}/role/", {"role": "viewer"})
    admin_page.post(f"/users/{admin.pk}/active/", {"active": "0"})
    admin.refresh_from_db()
    assert admin.is_active
    assert admin.role == "admin"


def test_users_are_for_administrators_only(viewer_page):
    assert viewer_page.get("/users/").status_code == 403


def test_the_audit_tells_what_was_before_and_after(admin_page, viewer):
    admin_page.post(f"/users/{viewer.pk}/role/", {"role": "operator"})
    page = admin_page.get("/audit/?action=user.role").content.decode()
    assert re.search(r'change-before">viewer</span>.*?<span>operator</span>', page, re.S)


def test_the_audit_is_paged_by_cursor_without_losing_its_filter(admin, admin_page):
    for n in range(60):
        making.dataset(admin, f"dataset {n}")
    first = admin_page.get("/audit/?action=dataset.create").content.decode()
    older = re.search(r'href="(\?[^"]*before=[^"]*)"', first)[1].replace("&amp;", "&")
    assert "action=dataset.create" in older
    assert admin_page.get(f"/audit/{older}").content.decode().count("dataset.create</a>") == 10


def test_the_audit_leaves_as_a_table_that_a_spreadsheet_does_not_run(admin, admin_page):
    making.dataset(admin, "=HYPERLINK(1)")
    text = b"".join(admin_page.get("/audit/export.csv").streaming_content).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == AuditEntry.objects.count()
    assert rows[0]["object"] == "'=HYPERLINK(1)"
