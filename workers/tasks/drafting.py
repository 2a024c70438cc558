"""A version's draft in the `inference` worker: where its files are, and what its guesses are worth."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Counter
from redis import RedisError

from apps import artifacts
from apps.monitoring import names
from apps.redis import connection
from apps.registry.models import ModelVersion

log = logging.getLogger(__name__)

KEPT_SECONDS = 24 * 3600

COUNTED = {
    "decode_turns": Counter(names.ENGINE_DECODE_TURNS_TOTAL, "Forwards of a sequence that gave it tokens, with a draft", ["version"]),
    "completion_tokens": Counter(names.ENGINE_DECODED_TOKENS_TOTAL, "Tokens that these gave", ["version"]),
    "guessed_tokens": Counter(names.ENGINE_GUESSED_TOKENS_TOTAL, "Tokens that the draft guessed", ["version"]),
    "accepted_tokens": Counter(names.ENGINE_ACCEPTED_TOKENS_TOTAL, "Guesses that were right", ["version"]),
}


def draft_folder(version: ModelVersion) -> Path | None:
    """None where there is no draft, or its files are not what they were: the version answers without."""
    if version.draft is None:
        return None
    try:
        return artifacts.verify(version.draft.folder, version.draft.files)
    except (artifacts.ArtifactDamaged, OSError) as error:
        log.warning("%s answers without its draft %s: %s", version.name, version.draft.name, error)
        return None


@dataclass
class DraftCounter:
    """How much one engine has told of its draft; nothing where it has none."""

    version_id: str = ""
    draft_id: str | None = None
    _told: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    @classmethod
    def of(cls, version: ModelVersion) -> "DraftCounter":
        return cls(version.pk, version.draft_id)

    def tell(self, stats) -> None:
        """`stats`: the engine's. What is new goes to Prometheus, and to Redis for the version's page."""
        new = {name: getattr(stats, name) - before for name, before in self._told.items()} if self.draft_id else {}
        if not any(new.values()):
            return
        for name, count in new.items():
            COUNTED[name].labels(self.version_id).inc(count)
            self._told[name] += count
        key = names.DRAFTING.format(version=self.version_id, draft=self.draft_id)
        try:
            pipe = connection().pipeline()
            for name, count in new.items():
                pipe.hincrby(key, name, count)
            pipe.expire(key, KEPT_SECONDS)
            pipe.execute()
        except RedisError as error:
            log.warning("%d guesses are missing from the version's page: %s", new["guessed_tokens"], error)
