"""Versions that another server holds: where they are, whether they may be asked, and what the inference workers know of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import redis
from django.conf import settings
from django.utils.translation import gettext as _

from apps.accounts.problems import Problem
from apps.monitoring import names
from apps.redis import connection
from apps.registry.models import ModelVersion
from workers.upstream.spec import UpstreamSpec, is_allowed

HEALTH_SECONDS = 15  # that a worker's word counts; it is said anew every two


@dataclass(frozen=True)
class UpstreamHealth:
    """As the inference worker has it that looked last. `state`: closed, half-open or open."""

    state: str
    checked_at: datetime | None
    latency_ms: float | None
    failures: int
    error: str


def spec_of(version: ModelVersion) -> UpstreamSpec:
    """As `upstream.json` has it; the row keeps a copy for the pages."""
    return UpstreamSpec(**version.details["upstream"])


def require_allowed(spec: UpstreamSpec) -> None:
    """Problem where the settings do not let questions go there (any more)."""
    if not is_allowed(spec, settings.UPSTREAM_HOSTS):
        raise Problem(
            _("Questions may not be sent to %(place)s. DSPORTAL_UPSTREAM_HOSTS names the hosts that are allowed; now: %(allowed)s.")
            % {"place": spec.place, "allowed": ", ".join(settings.UPSTREAM_HOSTS) or _("none")},
            field="base_url",
        )


def tell_health(version: str, health: dict) -> None:
    connection().set(names.UPSTREAM.format(version=version), json.dumps(health), ex=HEALTH_SECONDS)


def health_of(versions: Iterable[ModelVersion]) -> dict[str, UpstreamHealth]:
    """By version. Those that no worker has open are not there: nobody knows."""
    keys = [version.pk for version in versions]
    try:
        found = connection().mget([names.UPSTREAM.format(version=key) for key in keys]) if keys else []
    except redis.RedisError:
        return {}
    return {key: _read(json.loads(told)) for key, told in zip(keys, found, strict=True) if told}


def _read(told: dict) -> UpstreamHealth:
    checked = datetime.fromtimestamp(told["checked_at"], UTC) if told["checked_at"] else None
    return UpstreamHealth(told["state"], checked, told["latency_ms"], told["failures"], told["error"])
