import pytest

from apps.accounts.models import ApiToken, AuditEntry, User
from tests.apps import making
from tests.apps.conftest import Api

pytestmark = pytest.mark.django_db


def with_token(token: str) -> Api:
    client = Api()
    client.defaults["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return client


def test_a_token_is_shown_once_works_and_is_kept_as_a_hash_only(as_viewer):
    response = as_viewer.post("/api/v1/tokens/", {"name": "nightly"})

    made = response.json()
    assert response.status_code == 201
    assert with_token(made["token"]).get("/api/v1/me/").json()["username"] == "viewer"
    listed = next(row for row in as_viewer.get("/api/v1/tokens/").json()["results"] if row["id"] == made["id"])
    assert "token" not in listed
    assert listed["last_used_at"]
    row = ApiToken.objects.get(pk=made["id"])
    assert made["token"] not in {str(value) for value in vars(row).values()}


def test_a_revoked_token_is_refused_at_once(as_viewer):
    made = as_viewer.post("/api/v1/tokens/", {"name": "nightly"}).json()
    assert with_token(made["token"]).get("/api/v1/me/").status_code == 200

    assert as_viewer.delete(f"/api/v1/tokens/{made['id']}/").status_code == 204

    assert with_token(made["token"]).get("/api/v1/me/").status_code == 401
    assert AuditEntry.objects.filter(action="token.revoke", object_id=made["id"]).exists()


def test_anothers_tokens_are_neither_seen_nor_revoked(as_viewer, as_operator):
    made = as_viewer.post("/api/v1/tokens/", {"name": "mine"}).json()

    assert made["id"] not in {row["id"] for row in as_operator.get("/api/v1/tokens/").json()["results"]}
    assert as_operator.delete(f"/api/v1/tokens/{made['id']}/").status_code == 404


def test_an_administrator_adds_users_and_changes_their_roles_at_once(as_admin):
    made = as_admin.post("/api/v1/users/", {"username": "ada", "password": "lovelace-1815", "role": "viewer"})
    ada = Api(User.objects.get(username="ada"))
    assert (made.status_code, made.json()["role"]) == (201, "viewer")
    assert ada.post("/api/v1/datasets/", {"name": "x"}).status_code == 403

    assert as_admin.patch(f"/api/v1/users/{made.json()['id']}/", {"role": "operator"}).json()["role"] == "operator"

    assert ada.post("/api/v1/datasets/", {"name": "x"}).status_code == 400
    entry = AuditEntry.objects.get(action="user.role")
    assert (entry.before, entry.after) == ({"role": "viewer"}, {"role": "operator"})


def test_a_locked_account_is_out_at_once(as_admin, as_viewer, viewer):
    assert as_viewer.get("/api/v1/me/").status_code == 200

    as_admin.patch(f"/api/v1/users/{viewer.pk}/", {"is_active": False})

    assert as_viewer.get("/api/v1/me/").status_code == 401


@pytest.mark.parametrize(("fields", "field"), [
    ({"username": "admin"}, "username"), ({"username": "a b"}, "username"), ({"username": ""}, "username"), ({"password": "short"}, "password"),
    ({"password": "12345678"}, "password"), ({"role": "king"}, "role"), ({"email": "nobody"}, "email"),
])  # fmt: skip
def test_a_user_with_a_mistake_is_refused_at_its_field(as_admin, fields, field):
    response = as_admin.post("/api/v1/users/", {"username": "ada", "password": "lovelace-1815", **fields})

    assert response.status_code == 400, response.json()
    assert field in response.json()["errors"]


@pytest.mark.parametrize("change", [{"role": "viewer"}, {"is_active": False}])
def test_the_last_administrator_stays(as_admin, admin, change):
    assert as_admin.patch(f"/api/v1/users/{admin.pk}/", change).status_code == 409


def test_the_audit_log_is_read_by_actor_action_and_object(as_viewer, operator):
    made = making.dataset(operator)

    def found(query):
        return [row["action"] for row in as_viewer.get(f"/api/v1/audit/?{query}").json()["results"]]

    assert found(f"object={made.pk}") == found("action=dataset.create") == ["dataset.create"]
    assert found("actor=nobody") == []
    assert "dataset.create" in found("actor=operator")
    assert found("until=2000-01-01T00:00:00Z") == []
