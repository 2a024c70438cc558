"""The home page's words: the eight stations, what needs the operator, the last events. Reads a snapshot, asks nothing more."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.demonstration.models import Demonstration
from apps.jobs.models import Job
from apps.portal.home import Snapshot, bleu_of, evaluation_of
from apps.portal.retelling import retold
from apps.portal.templatetags.portal import decimals, duration, exact, ms, percent, short, signed
from apps.registry.gates import reason_of
from apps.registry.models import ModelVersion

NOTHING = "–"
SIGNIFICANT_P = 0.05
ENOUGH_NEW_RATINGS = 20
EVENTS_SHOWN = 9
NEEDS_SHOWN = 8


@dataclass(frozen=True)
class Station:
    name: str
    label: str
    url: str
    figure: str
    line: str
    state: str  # a word for people who see no colours
    dot: str = ""
    now: bool = False  # something moves here, or waits for the operator
    progress: float | None = None  # 0 to 1; -1 while it is not known


@dataclass(frozen=True)
class Need:
    """One thing that waits for a person, with the step to take: a link, or a form that posts."""

    dot: str
    symbol: str
    title: str
    text: str
    url: str
    link: str
    post_url: str = ""
    button: str = ""
    go: bool = False
    version: ModelVersion | None = None


@dataclass(frozen=True)
class Event:
    when: datetime
    text: str
    url: str = ""


# -- stations


def stations(s: Snapshot) -> list[Station]:
    return [_data(s), _training(s), _compression(s), _gate(s), _experiment(s), _live(s), _monitoring(s), _ratings(s)]


def _moving(job: Job, name: str, label: str, url: str, what: str) -> Station:
    """A station while a job of its kind is queued or running."""
    if job.status == Job.Status.QUEUED:
        return Station(name, label, url, _("queued"), what, _("queued"), "", True, -1)
    left = _("%(what)s, %(time)s left") % {"what": what, "time": duration(job.eta_seconds)} if job.eta_seconds is not None else what
    return Station(name, label, url, percent(job.progress), left, _("running"), "dot-run", True, job.progress)


def _data(s: Snapshot) -> Station:
    url, label = reverse("datasets"), _("Data")
    if job := s.active(Job.Kind.PROCESSING):
        return _moving(job, "datasets", label, url, _("processing"))
    used = next((d for d in s.datasets if d.used_rows is not None), None)
    if used:
        # Questions and claims are made of entries, so that more may be used than was uploaded.
        made = used.used_rows > (used.raw_rows or 0)
        line = (_("rows from %(raw)s uploaded") if made else _("rows used of %(raw)s")) % {"raw": exact(used.raw_rows)}
        return Station("datasets", label, url, short(used.used_rows), line, _("processed"), "dot-ok")
    if s.datasets:
        return Station("datasets", label, url, exact(len(s.datasets)), _("not processed yet"), _("waiting"), "dot-warn")
    return Station("datasets", label, url, NOTHING, _("nothing uploaded yet"), _("empty"))


def _training(s: Snapshot) -> Station:
    url, label = reverse("training"), _("Training")
    if job := s.active(Job.Kind.TRAINING):
        preset = job.trainingjob.preset if hasattr(job, "trainingjob") else ""
        return _moving(job, "training", label, url, preset)
    trained = next((v for v in s.versions if v.training_job_id), None)
    if trained:
        job = trained.training_job
        steps = job.metrics.get("step")
        line = _("%(steps)s steps in %(time)s") % {"steps": exact(steps), "time": duration(job.duration_seconds)} if steps else _("trained")
        return Station("training", label, url, trained.name, line, _("done"), "dot-ok")
    failed = next((j for j in s.jobs if j.kind == Job.Kind.TRAINING), None)
    if failed and failed.status == Job.Status.FAILED:
        return Station("training", label, url, _("failed"), failed.title, _("failed"), "dot-bad")
    return Station("training", label, url, NOTHING, _("nothing trained yet"), _("empty"))


def _compression(s: Snapshot) -> Station:
    url, label = reverse("compression"), _("Compression")
    if job := s.active(Job.Kind.COMPRESSION):
        return _moving(job, "compression", label, url, retold(job.title))
    small = next((v for v in s.versions if v.compression_job_id and v.parent_id), None)
    if small is None:
        return Station("compression", label, url, NOTHING, _("nothing compressed yet"), _("empty"))
    line = small.name
    if speed := _speed_up(small, next((v for v in s.versions if v.pk == small.parent_id), None)):
        line = _("%(name)s, %(speed)s × as fast") % {"name": small.name, "speed": decimals(speed)}
    saved = small.artifact_bytes / small.parent.artifact_bytes - 1 if small.parent.artifact_bytes else None
    return Station("compression", label, url, f"{signed(saved * 100, 0)} %" if saved is not None else NOTHING, line, _("done"), "dot-ok")


def _speed_up(version: ModelVersion, parent: ModelVersion | None) -> float | None:
    own, theirs = evaluation_of(version), evaluation_of(parent)
    if not (own and theirs):
        return None
    before = theirs.metrics.get("tokens_per_second")
    after = own.metrics.get("tokens_per_second")
    return after / before if before and after else None


def gain(version: ModelVersion, s: Snapshot) -> float | None:
    """BLEU of the version over its baseline's on the same set, in per cent."""
    decision = s.decisions.get(version.pk)
    baseline = next((v for v in s.versions if decision and v.pk == decision.baseline_id), None)
    if baseline is None:
        return None
    own, theirs = bleu_of(version, decision.evaluation_set_id), bleu_of(baseline, decision.evaluation_set_id)
    return (own / theirs - 1) * 100 if own is not None and theirs else None


def _gate(s: Snapshot) -> Station:
    url, label = reverse("models"), _("Gate")
    waiting = s.waiting()
    if waiting:
        version = waiting[0][0]
        more = gain(version, s)
        figure = f"{signed(more)} %" if more is not None else decimals(bleu_of(version))
        return Station("gate", label, reverse("version", args=[version.pk]), figure, _("%(name)s passed, waits") % {"name": version.name},
                       _("waits for you"), "dot-warn", True)  # fmt: skip
    if job := s.active(Job.Kind.EVALUATION):
        return _moving(job, "gate", label, url, job.evaluation.model_version.name if hasattr(job, "evaluation") else "")
    refused = next((v for v in s.versions if v.pk in s.decisions), None)
    if refused:
        more = gain(refused, s)
        figure = f"{signed(more)} %" if more is not None else decimals(bleu_of(refused))
        line = _("%(name)s refused") % {"name": refused.name}
        return Station("gate", label, reverse("version", args=[refused.pk]), figure, line, _("refused"), "dot-bad")
    return Station("gate", label, url, NOTHING, _("no candidate"), _("empty"))


def _experiment(s: Snapshot) -> Station:
    url, label = reverse("experiments"), _("Experiment")
    if s.trial is None:
        return Station("experiments", label, url, NOTHING, _("none running"), _("empty"))
    age = timezone.now() - s.trial.experiment.started_at
    since = ngettext("%(n)s day", "%(n)s days", age.days) % {"n": age.days} if age.days else duration(age.total_seconds())
    clear = s.trial.p_value is not None and s.trial.p_value < SIGNIFICANT_P
    url = reverse("experiment", args=[s.trial.experiment.pk])
    return Station("experiments", label, url, since, _("clear") if clear else _("not clear yet"), _("running"), "dot-run", clear)


def _live(s: Snapshot) -> Station:
    label = _("Live")
    if s.live:
        bleu = bleu_of(s.live)
        line = _("BLEU %(bleu)s") % {"bleu": decimals(bleu)} if bleu is not None else _("not evaluated")
        return Station("live", label, reverse("version", args=[s.live.pk]), s.live.name, line, _("live"), "dot-ok")
    if _is_first_turn(s):
        line = _("in about %(time)s") % {"time": duration(s.demonstration.first_live_eta_seconds)}
        return Station("live", label, reverse("models"), _("soon"), line, _("waiting"))
    return Station("live", label, reverse("models"), NOTHING, _("no version is live"), _("empty"))


def _monitoring(s: Snapshot) -> Station:
    url, label = reverse("monitoring"), _("Monitoring")
    if s.traffic is None:
        return Station("monitoring", label, url, NOTHING, _("Redis cannot be reached"), _("failed"), "dot-bad")
    dot = "dot-bad" if s.alerts else "dot-ok"
    state = ngettext("%(n)s alert firing", "%(n)s alerts firing", len(s.alerts)) % {"n": len(s.alerts)} if s.alerts else _("no alert")
    if s.traffic.p99_ms is None:
        return Station("monitoring", label, url, _("idle"), state if s.alerts else _("no requests this minute"), state, dot)
    line = state if s.alerts else _("P99 at %(qps)s QPS") % {"qps": decimals(s.traffic.qps)}
    return Station("monitoring", label, url, ms(s.traffic.p99_ms), line, state, dot)


def _ratings(s: Snapshot) -> Station:
    url, label = reverse("feedback"), _("Ratings")
    if not s.ratings["count"]:
        return Station("feedback", label, url, NOTHING, _("none yet"), _("empty"))
    line = _("of 5, %(n)s new") % {"n": exact(s.ratings["new"])}
    return Station("feedback", label, url, decimals(s.ratings["mean"]), line, _("collected"), "dot-ok")


# -- the sentence


def headline(s: Snapshot) -> str:
    """The state of the loop in a sentence or two."""
    said = [_("%(name)s is live.") % {"name": s.live.name} if s.live else _("No version is live yet.")]
    if not s.live and _is_first_turn(s):
        said = [_("The first version is being made; it answers in about %(time)s.") % {"time": duration(s.demonstration.first_live_eta_seconds)}]
    waiting = s.waiting()
    if waiting:
        version = waiting[0][0]
        more = gain(version, s)
        if more is not None and not version.is_compressed:
            said.append(_("%(name)s beats it by %(gain)s %% and waits for you.") % {"name": version.name, "gain": decimals(more)})
        else:
            said.append(_("%(name)s passed its gate and waits for you.") % {"name": version.name})
    running = next((j for j in s.jobs if j.status == Job.Status.RUNNING), None)
    if running:
        said.append(_("Running: %(title)s.") % {"title": retold(running.title)})
    if s.alerts:
        said.append(ngettext("%(n)s alert is firing.", "%(n)s alerts are firing.", len(s.alerts)) % {"n": len(s.alerts)})
    return " ".join(said)


def quiet(s: Snapshot) -> str:
    """What to do when nothing waits."""
    if _is_first_turn(s):
        return _("The first turn of the loop runs by itself. At its end a version waits here for your decision.")
    return _("The loop is quiet. Ask the live version something, or bring new text.") if s.live else _("Upload text to begin the loop.")


def _is_first_turn(s: Snapshot) -> bool:
    return s.demonstration is not None and s.demonstration.demonstration.status == Demonstration.Status.RUNNING


# -- what needs the operator


def needs(s: Snapshot) -> list[Need]:
    return [*_alerts(s), *_passed(s), *_failed(s), *_clear(s), *_to_correct(s), *_unprocessed(s), *_new_ratings(s)][:NEEDS_SHOWN]


def _alerts(s: Snapshot) -> Iterator[Need]:
    for alert in s.alerts:
        yield Need(
            "dot-bad",
            "bell",
            _("Alert: %(rule)s") % {"rule": retold(alert.rule.replace("_", " "))},
            retold(alert.message),
            reverse("monitoring"),
            _("Look"),
        )


def _passed(s: Snapshot) -> Iterator[Need]:
    for place, (version, decision) in enumerate(s.waiting()[:3]):
        rule = next((r for r in decision.rules if r["name"] == "bleu"), None)
        text = reason_of(rule) if rule else ""
        own = evaluation_of(version, decision.evaluation_set_id)
        theirs = bleu_of(next((v for v in s.versions if v.pk == decision.baseline_id), None), decision.evaluation_set_id)
        if own and theirs is not None:
            text = _("BLEU %(own)s against %(theirs)s of %(name)s, on the same %(n)s held-out questions") % {
                "own": decimals(own.metrics["bleu"]), "theirs": decimals(theirs), "name": decision.baseline.name,
                "n": exact(own.metrics.get("questions")),
            }  # fmt: skip
        yield Need("dot-warn", "gate", _("%(name)s passed its gate") % {"name": version.name}, text, reverse("version", args=[version.pk]), _("Look"),
                   reverse("promote", args=[version.pk]), _("Promote %(name)s") % {"name": version.name}, place == 0, version)  # fmt: skip


def _failed(s: Snapshot) -> Iterator[Need]:
    """Failed jobs, unless the same was begun again since."""
    newer: set[tuple[str, str]] = set()
    for job in s.jobs:
        what = (job.kind, job.title)
        if job.status == Job.Status.FAILED and what not in newer:
            yield Need(
                "dot-bad", "error", _("Failed: %(title)s") % {"title": retold(job.title)}, retold(_first_line(job.error)), page_of_job(job), _("Look")
            )
        newer.add(what)


def _first_line(text: str) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= 220 else line[:219] + "…"


def page_of_job(job: Job) -> str:
    if job.kind == Job.Kind.PROCESSING and hasattr(job, "processingrun"):
        return reverse("dataset", args=[job.processingrun.dataset_id])
    if job.kind == Job.Kind.TRAINING:
        return reverse("training_job", args=[job.pk])
    if job.kind == Job.Kind.EVALUATION and hasattr(job, "evaluation"):
        return reverse("version", args=[job.evaluation.model_version_id])
    if job.kind == Job.Kind.BATCH:
        return reverse("batch", args=[job.pk])
    return reverse("compression") if job.kind == Job.Kind.COMPRESSION else reverse("models")


def _clear(s: Snapshot) -> Iterator[Need]:
    if s.trial and s.trial.p_value is not None and s.trial.p_value < SIGNIFICANT_P:
        control, treatment = s.trial.ratings["control"], s.trial.ratings["treatment"]
        winner = s.trial.experiment.treatment if treatment.value > control.value else s.trial.experiment.control
        text = _("Rated %(a)s against %(b)s; by chance in %(p)s of such tests. Stop it and decide.") % {
            "a": decimals(max(control.value, treatment.value), 2), "b": decimals(min(control.value, treatment.value), 2),
            "p": percent(s.trial.p_value, 1),
        }  # fmt: skip
        title = _("The experiment is clear: %(name)s is better") % {"name": winner.name}
        yield Need("dot-warn", "experiments", title, text, reverse("experiment", args=[s.trial.experiment.pk]), _("Look"))


def _to_correct(s: Snapshot) -> Iterator[Need]:
    if n := s.ratings["to_correct"]:
        title = ngettext("%(n)s answer was rated 1 or 2", "%(n)s answers were rated 1 or 2", n) % {"n": exact(n)}
        text = _("Corrections become training pairs for the next version.")
        yield Need("dot-bad", "feedback", title, text, reverse("feedback") + "?rating=low", _("Correct them"))


def _unprocessed(s: Snapshot) -> Iterator[Need]:
    touched = {job.processingrun.dataset_id for job in s.jobs if job.kind == Job.Kind.PROCESSING and hasattr(job, "processingrun")}
    for dataset in [d for d in s.datasets if d.current_run_id is None and d.pk not in touched][:2]:
        text = _("It was uploaded, but nothing can be trained on it yet.")
        title = _("“%(name)s” is not processed") % {"name": dataset.name}
        yield Need("dot-warn", "datasets", title, text, reverse("dataset", args=[dataset.pk]), _("Look"),
                   reverse("dataset_process", args=[dataset.pk]), _("Process"))  # fmt: skip


def _new_ratings(s: Snapshot) -> Iterator[Need]:
    if (n := s.ratings["new"]) >= ENOUGH_NEW_RATINGS:
        title = ngettext("%(n)s new rating", "%(n)s new ratings", n) % {"n": exact(n)}
        yield Need("", "star", title, _("They can become a dataset that steers the next training."), reverse("feedback"), _("Look"),
                   reverse("feedback_dataset"), _("Make a dataset"))  # fmt: skip


# -- events


def events(s: Snapshot) -> list[Event]:
    found = [event for job in s.jobs if (event := _of_job(job))]
    found += [Event(e.created_at, _("The worker was lost; “%(title)s” goes on by itself") % {"title": retold(e.job.title)}) for e in s.requeued]
    found += [Event(entry.created_at, _of_audit(entry)) for entry in s.audit]
    return sorted(found, key=lambda event: event.when, reverse=True)[:EVENTS_SHOWN]


def _of_job(job: Job) -> Event | None:
    if job.status == Job.Status.SUCCEEDED and job.finished_at:
        return Event(job.finished_at, _success(job), page_of_job(job))
    if job.status == Job.Status.FAILED and job.finished_at:
        return Event(job.finished_at, _("Failed: %(title)s") % {"title": retold(job.title)}, page_of_job(job))
    if job.status == Job.Status.CANCELLED and job.finished_at:
        return Event(job.finished_at, _("Cancelled: %(title)s") % {"title": retold(job.title)}, page_of_job(job))
    if job.status == Job.Status.RUNNING and job.started_at:
        return Event(job.started_at, _("Began: %(title)s") % {"title": retold(job.title)}, page_of_job(job))
    return None


def _success(job: Job) -> str:
    if job.kind == Job.Kind.PROCESSING:
        rows = {stage["stage"]: stage["rows"] for stage in job.result.get("funnel", [])}
        return _("%(title)s: %(raw)s → %(used)s rows") % {"title": retold(job.title), "raw": exact(rows.get("raw")), "used": exact(rows.get("used"))}
    if job.kind == Job.Kind.TRAINING and hasattr(job, "trainingjob"):
        steps = job.trainingjob.metrics.get("step")
        return _("Training finished: %(steps)s steps in %(time)s") % {"steps": exact(steps), "time": duration(job.duration_seconds)}
    if job.kind == Job.Kind.EVALUATION and hasattr(job, "evaluation"):
        metrics = job.evaluation.metrics
        return _("%(name)s evaluated on %(n)s questions: BLEU %(bleu)s") % {
            "name": job.evaluation.model_version.name, "n": exact(metrics.get("questions")), "bleu": decimals(metrics.get("bleu")),
        }  # fmt: skip
    return _("Done: %(title)s") % {"title": retold(job.title)}


def _of_audit(entry) -> str:
    said = {
        "version.promote": _("%(who)s put %(what)s live"),
        "version.rollback": _("%(who)s rolled back to %(what)s"),
        "version.promotion_refused": _("The gate refused %(what)s"),
        "experiment.start": _("%(who)s started the experiment %(what)s"),
        "experiment.stop": _("%(who)s stopped the experiment %(what)s"),
        "dataset.create": _("%(who)s added the dataset “%(what)s”"),
        "user.create": _("%(who)s added the user %(what)s"),
        "alert.acknowledge": _("%(who)s acknowledged the alert %(what)s"),
    }
    what = retold(entry.object_label) if entry.object_kind == "experiment" else entry.object_label  # “v1 against v2”, but no dataset's own name
    return said[entry.action] % {"who": entry.actor_name, "what": what}
