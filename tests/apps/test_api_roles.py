"""Who may do what: every route that changes something, for every role. The routes come from the URL configuration, so that a new
one is tested, or fails here, without anybody's thinking of it."""

import re

import pytest
from django.urls import get_resolver
from django.urls.resolvers import URLPattern, URLResolver
from rest_framework.settings import api_settings

from apps.accounts.permissions import Administers, MayChat, ReadOrOperate, SignedIn

pytestmark = pytest.mark.django_db

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WRITES = ("post", "put", "patch", "delete")
# What every role may do: ask, rate, and see to one's own tokens and conversations.
FOR_EVERYBODY = {
    ("post", "/api/v1/generate/"), ("post", "/api/v1/chat/"), ("post", "/v1/chat/completions"), ("post", "/v1/completions"),
    ("post", "/v1/embeddings"),
    ("post", "/api/v1/feedback/"), ("post", "/api/v1/tokens/"), ("delete", f"/api/v1/tokens/{ID}/"), ("delete", f"/api/v1/conversations/{ID}/"),
}  # fmt: skip
READ_BY_OPERATORS = {f"/api/v1/training-jobs/{ID}/manifests/{ID}/"}  # it names folders of the machine
FOR_ADMINISTRATORS = {("post", "/api/v1/users/"), ("patch", "/api/v1/users/1/")}


def _patterns(resolver, prefix=""):
    for pattern in resolver.url_patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _patterns(pattern, route)
        elif isinstance(pattern, URLPattern):
            yield route, pattern.callback


def _path(route: str) -> str:
    number = "users/" in route
    route = re.sub(r"\(\?P<\w+>[^)]*\)", "1" if number else ID, route)
    route = re.sub(r"<(?:\w+:)?\w+>", ID, route)
    return "/" + re.sub(r"[\^$\\]|/\?$", "", route.replace("/?$", ""))


def _api_routes():
    for route, callback in _patterns(get_resolver()):
        view = getattr(callback, "cls", None)
        path = _path(route)
        if view is None or not path.startswith(("/api/v1/", "/v1/")):
            continue
        methods = getattr(callback, "actions", None) or {m: m for m in (*WRITES, "get") if hasattr(view, m)}
        for method in methods:
            yield method, path


ROUTES = sorted(set(_api_routes()))
CHANGING = [(method, path) for method, path in ROUTES if method in WRITES]
READING = [path for method, path in ROUTES if method == "get"]


def call(client, method, path):
    return getattr(client, method)(path, {}, content_type="application/json") if method != "get" else client.get(path)


def test_the_matrix_covers_the_contract():
    paths = {path for _method, path in CHANGING}
    assert len(CHANGING) > 25
    assert {f"/api/v1/model-versions/{ID}/promote/", f"/api/v1/datasets/{ID}/process/", f"/api/v1/experiments/{ID}/start/"} <= paths
    assert set(CHANGING) >= FOR_EVERYBODY | FOR_ADMINISTRATORS


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_nobody_changes_anything_without_signing_in(anonymous, method, path):
    assert call(anonymous, method, path).status_code == 401


@pytest.mark.parametrize(("method", "path"), [route for route in CHANGING if route not in FOR_EVERYBODY])
def test_a_viewer_changes_nothing(as_viewer, method, path):
    response = call(as_viewer, method, path)

    assert response.status_code == 403
    assert response["Content-Type"] == "application/problem+json"
    assert "role" in response.json()["detail"]


@pytest.mark.parametrize(("method", "path"), sorted(FOR_EVERYBODY))
def test_a_viewer_may_ask_rate_and_keep_tokens(as_viewer, method, path):
    assert call(as_viewer, method, path).status_code in (400, 404)


@pytest.mark.parametrize(("method", "path"), [route for route in CHANGING if route not in FOR_ADMINISTRATORS])
def test_an_operator_may_do_all_but_manage_users(as_operator, method, path):
    assert call(as_operator, method, path).status_code not in (401, 403)


@pytest.mark.parametrize(("method", "path"), sorted(FOR_ADMINISTRATORS))
def test_only_an_administrator_manages_users(as_operator, as_admin, method, path):
    assert call(as_operator, method, path).status_code == 403
    assert call(as_admin, method, path).status_code in (200, 400, 404)


@pytest.mark.parametrize("path", READING)
def test_reading_needs_a_sign_in_and_no_role(anonymous, as_viewer, path):
    assert anonymous.get(path).status_code == 401
    if path in READ_BY_OPERATORS:
        assert as_viewer.get(path).status_code == 403
        return
    assert as_viewer.get(path).status_code in (200, 404, 503) or path.startswith("/api/v1/users/")


@pytest.mark.parametrize("path", [path for path in READING if ID in path])
def test_an_unknown_id_is_not_found_and_says_so(as_admin, path):
    response = as_admin.get(path)

    assert response.status_code == 404
    assert response.json()


def test_whatever_forgets_to_say_needs_the_role_operator_to_change():
    assert [ReadOrOperate] == api_settings.DEFAULT_PERMISSION_CLASSES
    assert {SignedIn, MayChat, Administers}.isdisjoint(api_settings.DEFAULT_PERMISSION_CLASSES)
