"""The state machine of long work, as compare-and-set updates: a count of zero means somebody else was first, which is normal."""

import logging
from datetime import timedelta
from typing import TypeVar

from django.db import transaction
from django.db.models import Model, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import Conflict
from apps.accounts.services import record
from apps.jobs.models import Job, JobEvent
from apps.jobs.runs import run_of, specific
from apps.portal.retelling import retold
from dsportal.celery import app as celery

log = logging.getLogger(__name__)

S = Job.Status
TRANSITIONS: dict[str, frozenset[str]] = {
    S.QUEUED: frozenset({S.RUNNING, S.CANCELLED}),
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.CANCELLED, S.QUEUED}),
    S.FAILED: frozenset({S.QUEUED}),
    S.CANCELLED: frozenset({S.QUEUED}),
    S.SUCCEEDED: frozenset(),
}
HEARTBEAT_SECONDS = 2.0
LOST_AFTER_SECONDS = 10.0
# A job that kills its worker again and again (out of memory, say) must not do so for ever.
MAX_ATTEMPTS = 5
Work = TypeVar("Work", bound=Job)


def nudge() -> None:
    """Tell the workers, once the transaction is through, that something is queued. Losing this message loses nothing: the reaper repeats it."""
    # Robust: without Redis the row is written all the same, and its writer must not be told that it was not.
    transaction.on_commit(lambda: celery.send_task("dsportal.run_jobs", queue="jobs", expires=60, retry=False), robust=True)


def take_turn(row: Model) -> None:
    """Whoever else is about to begin work on the row waits for the end of this transaction, and then sees what it has begun.

    On SQLite they wait anyway: one transaction at a time may write. The row's key is left free, for the rows that refer to it.
    """
    type(row)._default_manager.select_for_update(no_key=True).get(pk=row.pk)


def under_way(rows: QuerySet[Work]) -> QuerySet[Work]:
    """Those that wait or run, and that nobody has cancelled. Who asks for the same again, by a double click or since the answer was lost on its
    way, is given these (after `take_turn`)."""
    return rows.filter(status__in=(S.QUEUED, S.RUNNING), cancel_requested=False)


def require_alone(same: Job | None) -> None:
    """Conflict where there is one that does the same: what ended before it is not begun again beside it."""
    if same:
        raise Conflict(
            _("The same is under way already: %(title)s (job %(job)s). Wait for it, or cancel it first.")
            % {"title": retold(same.title), "job": same.pk},
            job=same.pk,
        )


def move(job: Job, to: str, *, of_attempt: int | None = None, **fields) -> bool:
    """Move the row if it still is where this process believes it to be (and, given `of_attempt`, still that attempt's); False where it is not."""
    if to not in TRANSITIONS[job.status]:
        return False
    rows = Job.objects.filter(pk=job.pk, status=job.status)
    if of_attempt is not None:  # a worker that was given up must not write over its successor
        rows = rows.filter(attempt=of_attempt)
    if not rows.update(status=to, **fields):
        return False
    JobEvent.objects.create(job_id=job.pk, kind="status", data={"from": job.status, "to": to, "error": fields.get("error", "")})
    job.status = to
    for name, value in fields.items():
        setattr(job, name, value)
    return True


def claim_next(*, worker: str) -> Job | None:
    """Take the most urgent queued job for this worker."""
    for job in Job.objects.filter(status=S.QUEUED).order_by("-priority", "id")[:10]:
        now = timezone.now()
        started = job.started_at or now
        fields = {"attempt": job.attempt + 1, "worker": worker, "heartbeat_at": now, "started_at": started, "finished_at": None, "error": ""}
        if move(job, S.RUNNING, of_attempt=job.attempt, **fields):
            return job
    return None


def beat(job: Job, **fields) -> bool:
    """Write progress and the heartbeat. False: the job was cancelled, or given to another worker; stop."""
    rows = Job.objects.filter(pk=job.pk, status=S.RUNNING, attempt=job.attempt, cancel_requested=False)
    return bool(rows.update(heartbeat_at=timezone.now(), **fields))


@transaction.atomic
def finish(job: Job, *, result: dict) -> bool:
    return move(job, S.SUCCEEDED, of_attempt=job.attempt, result=result, progress=1.0, eta_seconds=0.0, message="", finished_at=timezone.now())


@transaction.atomic
def fail(job: Job, error: str) -> bool:
    return move(job, S.FAILED, of_attempt=job.attempt, error=error[:4000], eta_seconds=None, finished_at=timezone.now())


@transaction.atomic
def release(job: Job, *, why: str) -> bool:
    """Give a running job back to the queue: its worker is shutting down or was lost."""
    JobEvent.objects.create(job_id=job.pk, kind="requeued", data={"why": why, "progress": job.progress})
    return move(job, S.QUEUED, of_attempt=job.attempt, eta_seconds=None, message=why, heartbeat_at=None)


def gives_way(job: Job) -> bool:
    """Work that takes only what is left stops for whatever else waits."""
    return job.priority < 0 and Job.objects.filter(status=S.QUEUED, priority__gt=job.priority).exists()


@transaction.atomic
def settle_cancelled(job: Job) -> bool:
    return move(job, S.CANCELLED, of_attempt=job.attempt, finished_at=timezone.now(), eta_seconds=None, message="")


@transaction.atomic
def cancel(*, job: Job, actor: User | None, source: str = "") -> Job:
    """A queued job ends at once; a running one is asked to, and its worker does it within a heartbeat."""
    job.refresh_from_db()
    if not job.is_active:
        raise Conflict(_("This job has already %(status)s; there is nothing to cancel.") % {"status": job.get_status_display()})
    record(actor, f"{job.kind}.cancel", job, before={"status": job.get_status_display()}, after={"status": S.CANCELLED}, source=source)
    Job.objects.filter(pk=job.pk).update(cancel_requested=True)
    if job.status == S.QUEUED:
        move(job, S.CANCELLED, finished_at=timezone.now())
    job.refresh_from_db()
    return job


@transaction.atomic
def resume(*, job: Job, actor: User | None, source: str = "") -> Job:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint. Conflict where the same is under way."""
    job.refresh_from_db()
    before = job.status
    ended = before in (S.FAILED, S.CANCELLED)
    if ended:
        run_of(job.kind).before_resume(specific(job))
    if not ended or not move(job, S.QUEUED, cancel_requested=False, attempt=0, error="", finished_at=None, message="", heartbeat_at=None):
        raise Conflict(_("Only a failed or cancelled job can be resumed; this one is %(status)s.") % {"status": S(before).label})
    record(actor, f"{job.kind}.resume", job, before={"status": before}, after={"status": S.QUEUED}, source=source)
    nudge()
    return job


@transaction.atomic
def reap() -> int:
    """Queue again what lost its worker, and nudge for whatever waits. Returns how many jobs were lost."""
    lost = 0
    deadline = timezone.now() - timedelta(seconds=LOST_AFTER_SECONDS)
    for job in Job.objects.filter(status=S.RUNNING, heartbeat_at__lt=deadline):
        if job.cancel_requested:
            settle_cancelled(job)
        elif job.attempt >= MAX_ATTEMPTS:
            fail(job, f"The worker was lost {job.attempt} times while it ran this job; the last message was: {job.message or 'none'}.")
        elif release(job, why="its worker was lost; queued again"):
            lost += 1
            log.warning("job %s lost its worker %s at %.0f %%; queued again", job.pk, job.worker, job.progress * 100)
    if Job.objects.filter(status=S.QUEUED).exists():
        nudge()
    return lost
