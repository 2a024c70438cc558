"""Drafts: the smaller relative that guesses ahead for a version while it answers (docs/decisions/speculative-decoding.md)."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.db import transaction
from django.utils.translation import gettext as _
from redis import RedisError

from apps.accounts.models import User
from apps.accounts.problems import Problem
from apps.accounts.services import record
from apps.monitoring import names
from apps.redis import connection
from apps.registry.models import ModelVersion
from apps.registry.selectors import family


@transaction.atomic
def choose_draft(*, version: ModelVersion, draft: ModelVersion | None, actor: User | None, source: str = "") -> None:
    """Let `draft` guess ahead for the version; None: nobody. The answers stay the same; engines follow within seconds."""
    if draft is not None and draft not in possible_drafts(version):
        raise Problem(
            _(
                "%(draft)s cannot draft for %(name)s: it must be a relative with the same tokenizer and at most half the bytes, and neither may be ONNX."
            )
            % {"draft": draft.name, "name": version.name},
            field="draft",
        )
    before = version.draft
    if before == draft:
        return
    ModelVersion.objects.filter(pk=version.pk).update(draft=draft)
    version.draft = draft
    told = {"before": {"draft": before.name if before else None}, "after": {"draft": draft.name if draft else None}}
    record(actor, "version.draft", version, **told, source=source)


def possible_drafts(version: ModelVersion, relatives: Iterable[ModelVersion] | None = None) -> list[ModelVersion]:
    """Who may guess ahead for it, the smallest first: relatives of the same tokenizer, of at most half its bytes. None for an ONNX version,
    whose engine reads no guesses. `relatives`: its family, for those who have it already."""
    own = _tokenizer_of(version)
    if version.kind == ModelVersion.Kind.ONNX or own is None:
        return []
    return sorted(
        (relative for relative in relatives or family(version) if _may_draft(relative, version, own)), key=lambda relative: relative.artifact_bytes
    )


def _may_draft(relative: ModelVersion, version: ModelVersion, tokenizer: str) -> bool:
    small = relative.artifact_bytes <= version.artifact_bytes // 2
    return small and relative.kind != ModelVersion.Kind.ONNX and _tokenizer_of(relative) == tokenizer


def _tokenizer_of(version: ModelVersion) -> str | None:
    return next((file["sha256"] for file in version.files if file["name"] == "tokenizer.json"), None)


@dataclass(frozen=True)
class Drafting:
    """What the draft was worth within the last day: `acceptance` of 0 to 1; `tokens_per_step` of one answer, 1 without a draft."""

    acceptance: float | None
    tokens_per_step: float | None


def drafting(version: ModelVersion) -> Drafting | None:
    """None without a draft. Figures are None before its first guess, and while Redis cannot be asked."""
    if version.draft_id is None:
        return None
    try:
        counted = connection().hgetall(names.DRAFTING.format(version=version.pk, draft=version.draft_id))
    except RedisError:
        counted = {}
    guessed, accepted, turns, tokens = (int(counted.get(n, 0)) for n in ("guessed_tokens", "accepted_tokens", "decode_turns", "completion_tokens"))
    return Drafting(accepted / guessed if guessed else None, tokens / turns if turns else None)
