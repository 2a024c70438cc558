"""Users, tokens and the audit log: everything that changes them."""

import secrets

from django.conf import settings
from django.db import transaction
from django.db.models import Model
from django.utils import timezone

from apps.accounts.models import ApiToken, AuditEntry, User
from apps.accounts.problems import Problem, Refused
from apps.accounts.selectors import forget_token, token_digest

TOKEN_PREFIX = "dsp_"


def record(actor: User | None, action: str, target: Model, *, before: dict | None = None, after: dict | None = None, source: str = "") -> None:
    """One audit row; called inside the transaction of the change it tells of."""
    AuditEntry.objects.create(
        actor=actor,
        actor_name=actor.get_username() if actor else "system",
        action=action,
        object_kind=target._meta.model_name,
        object_id=str(target.pk),
        object_label=str(target)[:200],
        before=before or {},
        after=after or {},
        source=source,
    )


@transaction.atomic
def create_token(*, user: User, name: str, actor: User, source: str = "", token: str | None = None) -> tuple[ApiToken, str]:
    """The row, and the token itself, which is never shown again."""
    name = name.strip()
    if not name:
        raise Problem("Give the token a name, such as the service that will use it.", field="name")
    token = token or TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = ApiToken.objects.create(user=user, name=name[:80], digest=token_digest(token), prefix=token[:8])
    record(actor, "token.create", row, after={"name": row.name}, source=source)
    return row, token


@transaction.atomic
def revoke_token(*, token: ApiToken, actor: User, source: str = "") -> ApiToken:
    if token.user_id != actor.pk and not actor.may_administer:
        raise Refused("Only its owner or an administrator may revoke a token.")
    if token.revoked_at is None:
        token.revoked_at = timezone.now()
        token.save(update_fields=["revoked_at"])
        record(actor, "token.revoke", token, before={"revoked": False}, after={"revoked": True}, source=source)
    forget_token(token.digest)
    return token


@transaction.atomic
def change_role(*, user: User, role: str, actor: User, source: str = "") -> User:
    if not actor.may_administer:
        raise Refused("Only an administrator may change roles.")
    if role not in User.Role.values:
        raise Problem(f"There is no role {role!r}; choose one of {', '.join(User.Role.values)}.", field="role")
    before = user.role
    user.role = role
    user.is_staff = role == User.Role.ADMIN
    user.save(update_fields=["role", "is_staff"])
    record(actor, "user.role", user, before={"role": before}, after={"role": role}, source=source)
    return user


@transaction.atomic
def ensure_admin() -> tuple[str | None, str | None]:
    """Make the first administrator and token. Returns the password and the token where they are new, for the console.

    A password or token given by the environment always holds, so that a restart with another one changes it.
    """
    user = User.objects.filter(username="admin").first()
    password = token = None
    if user is None:
        password = settings.ADMIN_PASSWORD or secrets.token_urlsafe(12)
        user = User.objects.create_superuser("admin", password=password, role=User.Role.ADMIN)
        record(None, "user.create", user, after={"role": user.role})
    elif settings.ADMIN_PASSWORD and not user.check_password(settings.ADMIN_PASSWORD):
        password = settings.ADMIN_PASSWORD
        user.set_password(password)
        user.save(update_fields=["password"])
        record(None, "user.password", user)
    if settings.ADMIN_TOKEN:
        if not ApiToken.objects.filter(digest=token_digest(settings.ADMIN_TOKEN)).exists():
            _, token = create_token(user=user, name="from the environment", actor=user, token=settings.ADMIN_TOKEN)
    elif not user.api_tokens.exists():
        _, token = create_token(user=user, name="first token", actor=user)
    return password, token
