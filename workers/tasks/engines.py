"""The engines of an inference worker: one a version, as many as its memory holds, and those that will be asked next loaded ahead."""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from prometheus_client import Gauge

from apps import artifacts
from apps.monitoring import names
from apps.registry.models import ModelVersion
from apps.registry.upstream_access import require_allowed, spec_of, tell_health
from workers.tasks.drafting import DraftCounter, draft_folder
from workers.tasks.engine_counts import EngineCounts

log = logging.getLogger(__name__)

engines_bytes = Gauge(names.ENGINES_BYTES, "Loaded versions: weights, and what keys and values may take", multiprocess_mode="livesum")


class NoRoom(Exception):
    """The version does not fit into the memory for engines as long as others are in it. The message is for people."""


class NeverFits(NoRoom):
    """Nor would it alone."""


@dataclass
class Held:
    """One version's engine: None while it is being loaded. `lent`: how many are asking it now. `is_replaced`: nobody else may."""

    bytes: int = 0
    engine: Any = None
    lent: int = 0
    is_replaced: bool = False
    draft: DraftCounter = field(default_factory=DraftCounter)

    @property
    def is_idle(self) -> bool:
        return self.engine is not None and not self.lent


def open_version(version: ModelVersion):
    from workers.engine import open_engine  # jobs and beat read this file too, and need no engine

    if version.kind == ModelVersion.Kind.UPSTREAM:
        require_allowed(spec_of(version))  # the settings may have changed since it was connected
    began = time.monotonic()
    folder = artifacts.verify(version.folder, version.files)
    engine = open_engine(
        folder, threads=settings.INFERENCE_THREADS, device=settings.DEVICE, cache_bytes=settings.ENGINE_CACHE_BYTES, draft=draft_folder(version)
    )
    log.info("%s is loaded in %.1f s", version.name, time.monotonic() - began)
    return engine


class Engines:
    """An engine is lent while it answers, and never closed meanwhile. Where another version needs its memory, the one that was not asked for the
    longest time is closed, those that are live or in an experiment last."""

    def __init__(self, most: int, budget_bytes: int, opener: Callable[[ModelVersion], Any] = open_version):
        self._most, self._budget_bytes, self._opener = most, budget_bytes, opener
        self._changed = threading.Condition()
        self._held: OrderedDict[str, Held] = OrderedDict()  # the least recently asked first
        self._wanted: frozenset[str] = frozenset()
        self._counts, self._counting = EngineCounts(), threading.Lock()

    @contextmanager
    def lent(self, version_id: str, deadline: float = math.inf) -> Iterator[Any]:
        """The version's engine, loaded where it is not. `deadline`: of `time.monotonic`. NoRoom; what loading a version may raise."""
        held = self.take(version_id, deadline)
        try:
            yield held.engine
        finally:
            self.give_back(held)

    def take_loaded(self, version_id: str) -> Held | None:
        """The version, where its engine is there; then `give_back` is owed."""
        with self._changed:
            held = self._held.get(version_id)
            return self._lend(version_id, held) if held is not None and held.engine is not None else None

    def take(self, version_id: str, deadline: float) -> Held:
        """As `lent`; `give_back` is owed."""
        return self._take(version_id, deadline, spared=())

    def give_back(self, held: Held) -> None:
        with self._changed:
            held.lent -= 1
            closing = held.engine if held.is_replaced and not held.lent else None
            self._changed.notify_all()
        if closing:
            closing.close()

    def prepare(self, version_ids: Collection[str]) -> dict[str, str]:
        """Load these ahead, in their order, as far as there is room: none is closed for another of them. Why those that cannot be loaded cannot."""
        self._wanted = frozenset(version_ids)
        failures = {}
        for version_id in version_ids:
            try:
                self.give_back(self._take(version_id, time.monotonic(), spared=self._wanted))
            except NeverFits as error:
                failures[version_id] = str(error)
            except NoRoom as error:
                log.info("%s is not loaded ahead: %s", version_id, error)
            except Exception as error:  # noqa: BLE001 — whatever is wrong with one version, the others are loaded
                failures[version_id] = str(error)
        return failures

    def follow_drafts(self) -> None:
        """Open a version again whose draft is another now: who asks the old engine is answered by it, and then it is closed."""
        with self._changed:
            opened = {version_id: held for version_id, held in self._held.items() if held.engine}
        for version in ModelVersion.objects.select_related("draft").filter(pk__in=opened):
            old = opened[version.pk]
            if version.draft_id == old.draft.draft_id:
                continue
            try:
                self._replace(version, old)
            except Exception:  # the engine that is there answers on
                log.exception("%s cannot be opened again with another draft", version.name)
                old.draft = DraftCounter.of(version)

    def _replace(self, version: ModelVersion, old: Held) -> None:
        engine = self._opener(version)
        new = Held(_weights_bytes(version) + engine.stats().cache_total_bytes, engine, draft=DraftCounter.of(version))
        with self._changed:
            fits = self._taken_bytes() - old.bytes + new.bytes <= self._budget_bytes
            if fits and self._held.get(version.pk) is old:
                self._held[version.pk] = new
                old.is_replaced = True
                with self._counting:
                    self._counts.count(version.pk, old.engine.stats())
                    self._counts.forget(version.pk)
                engine = None if old.lent else old.engine
            elif not fits:
                log.warning("%s goes on with the draft it had: there is no memory for %s", version.name, version.draft)
                old.draft = new.draft
        if engine:
            engine.close()

    def count(self) -> None:
        """Tell what they did since the last time."""
        with self._changed:
            drafts = [(held.draft, held.engine) for held in self._held.values() if held.engine]
            found = {version_id: held.engine.stats() for version_id, held in self._held.items() if held.engine}
            upstream = {version_id: held.engine.health() for version_id, held in self._held.items() if hasattr(held.engine, "health")}
            engines_bytes.set(self._taken_bytes())
        with self._counting:  # apart from the other lock: Redis may be slow, and whoever wants an engine must not wait for it
            for version_id, stats in found.items():
                if version_id in self._held:
                    self._counts.count(version_id, stats)
            for draft, engine in drafts:
                draft.tell(engine.stats())
        self._counts.show(list(found.values()))
        for version_id, health in upstream.items():
            tell_health(version_id, health.as_dict())

    def hold(self, version_id: str, engine: Any) -> None:
        """An engine that was opened elsewhere."""
        with self._changed:
            self._held[version_id] = Held(engine=engine)

    def let_go(self, version_id: str) -> None:
        """Close a version's engine, whoever it is lent to."""
        with self._changed:
            held = self._held.pop(version_id)
        held.engine.close()

    def close(self) -> None:
        with self._changed:
            engines = [held.engine for held in self._held.values() if held.engine]
            self._held.clear()
        for engine in engines:
            engine.close()

    def _take(self, version_id: str, deadline: float, spared: Collection[str]) -> Held:
        with self._changed:
            while (held := self._held.get(version_id)) is not None and held.engine is None:  # another thread loads it
                if not self._changed.wait(_left(deadline)):
                    raise NoRoom("The version is still being loaded; ask again in a moment.")
            if held is not None:
                return self._lend(version_id, held)
            held = self._held[version_id] = Held(lent=1)
        try:
            self._load(version_id, held, deadline, spared)
        except BaseException:
            with self._changed:
                self._held.pop(version_id, None)
                self._changed.notify_all()
            raise
        return held

    def _load(self, version_id: str, held: Held, deadline: float, spared: Collection[str]) -> None:
        version = ModelVersion.objects.select_related("draft").get(pk=version_id)
        self._make_room(version.name, held, _weights_bytes(version), deadline, spared)
        engine = self._opener(version)
        try:
            self._make_room(version.name, held, _weights_bytes(version) + engine.stats().cache_total_bytes, deadline, spared)
        except NoRoom:
            engine.close()
            raise
        with self._changed:
            held.engine, held.draft = engine, DraftCounter.of(version)
            self._changed.notify_all()

    def _make_room(self, name: str, held: Held, needed_bytes: int, deadline: float, spared: Collection[str]) -> None:
        """Close idle engines until `held` may take so much; it does from then on."""
        if needed_bytes > self._budget_bytes:
            raise NeverFits(
                f"{name} needs {needed_bytes:,} bytes with its keys and values; an inference worker may use {self._budget_bytes:,} "
                "(DSPORTAL_ENGINES_BYTES; DSPORTAL_ENGINE_CACHE_BYTES bounds the keys and values)."
            )
        closing = []
        try:
            with self._changed:
                while len(self._held) > self._most or self._taken_bytes() - held.bytes + needed_bytes > self._budget_bytes:
                    idle = [key for key, other in self._held.items() if other.is_idle and key not in spared]
                    if idle:
                        closing.append(self._take_out(next((key for key in idle if key not in self._wanted), idle[0])))
                    elif spared or not self._changed.wait(_left(deadline)):
                        raise NoRoom(f"There is no memory for {name} as long as other versions answer; ask again in a moment.")
                held.bytes = needed_bytes
        finally:
            for engine in closing:
                engine.close()

    def _take_out(self, version_id: str) -> Any:
        engine = self._held.pop(version_id).engine
        with self._counting:
            self._counts.count(version_id, engine.stats())
            self._counts.forget(version_id)
        return engine

    def _taken_bytes(self) -> int:
        return sum(held.bytes for held in self._held.values())

    def _lend(self, version_id: str, held: Held) -> Held:
        self._held.move_to_end(version_id)
        held.lent += 1
        return held


def _weights_bytes(version: ModelVersion) -> int:
    return version.artifact_bytes + (version.draft.artifact_bytes if version.draft else 0)


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())
