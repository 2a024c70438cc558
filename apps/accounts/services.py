"""Users, tokens and the audit log: everything that changes them."""

import secrets

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Model
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.accounts.models import ApiToken, AuditEntry, User
from apps.accounts.problems import Conflict, Problem, Refused
from apps.accounts.selectors import forget_token, forget_tokens_of, token_digest

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
def create_token(
    *, user: User, name: str, actor: User, source: str = "", token: str | None = None, requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[ApiToken, str]:  # fmt: skip
    """The row, and the token itself, which is never shown again. Only an administrator gives more than the settings do."""
    name = name.strip()
    if not name:
        raise Problem(_("Give the token a name, such as the service that will use it."), field="name")
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    _within_the_settings(actor, limits)
    token = token or TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = ApiToken.objects.create(user=user, name=name[:80], digest=token_digest(token), prefix=token[:8], **limits)
    given = {field: value for field, value in limits.items() if value is not None}
    record(actor, "token.create", row, after={"name": row.name, **given}, source=source)
    return row, token


def _within_the_settings(actor: User, limits: dict[str, int | None]) -> None:
    for field, value in limits.items():
        most = getattr(settings, field.upper())
        if value is not None and most and not 0 < value <= most and not actor.may_administer:
            raise Refused(_("Only an administrator may give a token more than %(most)s a minute.") % {"most": f"{most:,}"}, field=field)


@transaction.atomic
def revoke_token(*, token: ApiToken, actor: User, source: str = "") -> ApiToken:
    if token.user_id != actor.pk and not actor.may_administer:
        raise Refused(_("Only its owner or an administrator may revoke a token."))
    if token.revoked_at is None:
        token.revoked_at = timezone.now()
        token.save(update_fields=["revoked_at"])
        record(actor, "token.revoke", token, before={"revoked": False}, after={"revoked": True}, source=source)
    forget_token(token.digest)
    return token


@transaction.atomic
def change_password(*, user: User, password: str, actor: User, source: str = "") -> User:
    if user.pk != actor.pk and not actor.may_administer:
        raise Refused(_("Only an administrator may change another's password."))
    _set_password(user, password)
    user.save(update_fields=["password"])
    record(actor, "user.password", user, source=source)
    return user


def _set_password(user: User, password: str) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise Problem(" ".join(error.messages), field="password") from error
    user.set_password(password)


def _not_the_last_admin(user: User) -> None:
    others = User.objects.select_for_update().filter(role=User.Role.ADMIN, is_active=True).exclude(pk=user.pk)
    if user.role == User.Role.ADMIN and not others.exists():
        raise Conflict(_("This is the last administrator; make another one first."))


@transaction.atomic
def change_role(*, user: User, role: str, actor: User, source: str = "") -> User:
    if not actor.may_administer:
        raise Refused(_("Only an administrator may change roles."))
    if role not in User.Role.values:
        raise Problem(
            _("There is no role %(name)s; choose one of %(names)s.") % {"name": repr(role), "names": ", ".join(User.Role.values)}, field="role"
        )
    if user.pk == actor.pk and role != User.Role.ADMIN:
        raise Conflict(_("You cannot take the role admin from yourself; another administrator can."), field="role")
    if role != User.Role.ADMIN:
        _not_the_last_admin(user)
    before = user.role
    user.role = role
    user.is_staff = user.is_superuser = role == User.Role.ADMIN
    user.save(update_fields=["role", "is_staff", "is_superuser"])
    forget_tokens_of(user)
    record(actor, "user.role", user, before={"role": before}, after={"role": role}, source=source)
    return user


@transaction.atomic
def create_user(*, username: str, password: str, role: str = User.Role.VIEWER, email: str = "", actor: User, source: str = "") -> User:
    if not actor.may_administer:
        raise Refused(_("Only an administrator may add users."))
    if role not in User.Role.values:
        raise Problem(
            _("There is no role %(name)s; choose one of %(names)s.") % {"name": repr(role), "names": ", ".join(User.Role.values)}, field="role"
        )
    username = User.normalize_username(username.strip())
    if User.objects.filter(username__iexact=username).exists():
        raise Problem(_("There is a user named %(name)s already.") % {"name": username}, field="username")
    user = User(username=username, email=email, role=role, is_staff=role == User.Role.ADMIN, is_superuser=role == User.Role.ADMIN)
    _set_password(user, password)
    try:
        user.full_clean()
    except ValidationError as error:
        name, said = next(iter(error.message_dict.items()))
        raise Problem(said[0], field=name) from error
    user.save()
    record(actor, "user.create", user, after={"role": role}, source=source)
    return user


@transaction.atomic
def set_active(*, user: User, active: bool, actor: User, source: str = "") -> User:
    """Switch an account off or on again. What it made stays; its tokens and sessions end at once."""
    if not actor.may_administer:
        raise Refused(_("Only an administrator may switch accounts off."))
    if user.pk == actor.pk and not active:
        raise Conflict(_("You cannot switch off your own account; another administrator can."))
    if not active:
        _not_the_last_admin(user)
    if user.is_active != active:
        user.is_active = active
        user.save(update_fields=["is_active"])
        forget_tokens_of(user)
        record(actor, "user.activate" if active else "user.deactivate", user, before={"active": not active}, after={"active": active}, source=source)
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
