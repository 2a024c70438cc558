import hashlib
import time

from django.db.models import QuerySet
from django.utils import timezone

from apps.accounts.models import ApiToken, AuditEntry, User

# A revoked token may work this much longer in another web process: the price of not asking the database at every request.
TOKEN_CACHE_SECONDS = 1
_USED_AT_GRANULARITY_SECONDS = 60
_token_cache: dict[str, tuple[float, tuple[User, ApiToken] | None]] = {}


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def user_of_token(token: str) -> tuple[User, ApiToken] | None:
    digest = token_digest(token)
    now = time.monotonic()
    cached = _token_cache.get(digest)
    if cached and cached[0] > now:
        return cached[1]
    row = ApiToken.objects.select_related("user").filter(digest=digest, revoked_at=None, user__is_active=True).first()
    found = (row.user, row) if row else None
    if len(_token_cache) > 10_000:
        _token_cache.clear()
    _token_cache[digest] = (now + TOKEN_CACHE_SECONDS, found)
    if row and (row.last_used_at is None or (timezone.now() - row.last_used_at).total_seconds() > _USED_AT_GRANULARITY_SECONDS):
        ApiToken.objects.filter(pk=row.pk).update(last_used_at=timezone.now())
    return found


def forget_token(digest: str) -> None:
    _token_cache.pop(digest, None)


def forget_tokens_of(user: User) -> None:
    for digest in user.api_tokens.values_list("digest", flat=True):
        forget_token(digest)


def tokens_of(user: User) -> QuerySet[ApiToken]:
    return ApiToken.objects.filter(user=user)


def audit_entries() -> QuerySet[AuditEntry]:
    return AuditEntry.objects.select_related("actor")
