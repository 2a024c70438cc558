"""The steps of a job, kept in the process as columns: a live chart asks every few seconds and reads only what is new."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from apps.jobs.models import JobEvent

COLUMNS = (
    "step",
    "loss",
    "lr",
    "tokens_per_second",
    "grad_norm",
    "loss_scale",
    "skipped_steps",
    "expert_load_max_over_mean",
    "expert_load_min_over_mean",
    "elapsed",
    "memory_bytes",
    "mfu",
)
JOBS_KEPT = 16  # 10,000 steps are about 1 MB


@dataclass
class History:
    """Columns of equal length, ascending in `step`; `expert_load` is the newest (layers × experts)."""

    last_event: int = 0
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    expert_load: list[list[float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.columns["step"])

    def last(self, name: str) -> Any:
        return next((value for value in reversed(self.columns[name]) if value is not None), None)

    def has(self, name: str) -> bool:
        return any(value is not None for value in self.columns[name])

    def add(self, event: int, data: dict) -> None:
        self.last_event = event
        if data.get("step") is None:
            return
        # A job that was taken up again repeats the steps since its last checkpoint: what they replace goes.
        while self.columns["step"] and self.columns["step"][-1] >= data["step"]:
            for column in self.columns.values():
                column.pop()
        for name, column in self.columns.items():
            column.append(data.get(name))
        self.expert_load = data.get("expert_load") or self.expert_load


_kept: OrderedDict[str, History] = OrderedDict()
_lock = threading.Lock()


def history(job_id: str) -> History:
    """The job's steps so far."""
    with _lock:
        found = _kept.setdefault(job_id, History())
        _kept.move_to_end(job_id)
        while len(_kept) > JOBS_KEPT:
            _kept.popitem(last=False)
    with found.lock:
        new = JobEvent.objects.filter(job_id=job_id, kind="step", id__gt=found.last_event).order_by("id").values_list("id", "data")
        for event, data in new.iterator(chunk_size=2000):
            found.add(event, data)
    return found


def samples(job_id: str, count: int = 8) -> list[dict]:
    """What the model answered on the way, newest first."""
    return list(JobEvent.objects.filter(job_id=job_id, kind="sample").order_by("-id").values_list("data", flat=True)[:count])


def evaluations(job_id: str) -> list[dict]:
    """Held-out questions answered on the way, ascending in `step`: `bleu` (0–100), `loss`, `answered`. A resumed job's replace those it repeats."""
    found: list[dict] = []
    for data in JobEvent.objects.filter(job_id=job_id, kind="evaluation").order_by("id").values_list("data", flat=True):
        while found and found[-1]["step"] >= data["step"]:
            found.pop()
        found.append(data)
    return found
