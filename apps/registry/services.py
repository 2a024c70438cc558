"""Model versions: registering, evaluating, compressing, promoting, rolling back."""

import re
import sys
from pathlib import Path

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import override
from pydantic import ValidationError

from apps import artifacts
from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem
from apps.accounts.services import record
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.jobs.runs import Command, Run, register
from apps.portal.retelling import retold
from apps.registry import gates
from apps.registry.models import VERSION_COLOURS, CompressionJob, Evaluation, EvaluationSet, GateDecision, ModelVersion
from apps.registry.upstream_access import require_allowed, spec_of
from apps.serving.cache import clear_answers
from apps.serving.models import Deployment
from apps.serving.warming import warm
from apps.training.selectors import presets
from workers.compression.applicable import OPTIONS, applicable, unusable
from workers.compression.applicable import Model as Known
from workers.compression.spec import CompressSpec
from workers.moe import PRESETS

EVALUATION_DEFAULTS = {"max_questions": 300, "max_tokens": 64}


def take_naming_turn() -> None:
    """Whoever else is about to give a version its name waits for the end of this transaction. What they share is the row of their kind."""
    jobs.take_turn(ContentType.objects.get_for_model(ModelVersion))


def _next_name(kind: str, parent: ModelVersion | None, compressed: bool) -> tuple[int, str]:
    number = (ModelVersion.objects.aggregate(top=Max("number"))["top"] or 0) + 1
    if not compressed:
        taken = [int(m[1]) for name in ModelVersion.objects.values_list("name", flat=True) if (m := re.fullmatch(r"v(\d+)", name))]
        return number, f"v{max(taken, default=0) + 1}"
    base = f"{parent.name}-{kind}"
    names = set(ModelVersion.objects.filter(name__startswith=base).values_list("name", flat=True))
    name, again = base, 2
    while name in names:
        name, again = f"{base}-{again}", again + 1
    return number, name


def register_version(
    *, kind: str, folder: Path, parent: ModelVersion | None, run, result: dict, actor: User | None,
    training_job=None, compression_job: CompressionJob | None = None, name: str | None = None,
) -> ModelVersion:  # fmt: skip
    """Publish a finished model folder and write its row. Repeating it after a crash finds the row that is there."""
    if training_job and (found := ModelVersion.objects.filter(training_job=training_job).first()):
        return found
    if compression_job and (found := compression_job.versions.filter(kind=kind, parent=parent).first()):
        return found
    files = artifacts.describe(folder)
    with transaction.atomic():
        take_naming_turn()
        number, generated = _next_name(kind, parent, compression_job is not None)
        version = ModelVersion(
            number=number, name=name or generated, kind=kind, parent=parent, run=run, training_job=training_job, compression_job=compression_job,
            files=files, artifact_bytes=sum(f["bytes"] for f in files if f["name"].endswith((".safetensors", ".onnx", ".data"))),
            total_parameters=result["total_parameters"], active_parameters=result["active_parameters"],
            config=result.get("config", {}), details=_details(result),
            colour=(number - 1) % VERSION_COLOURS, created_by=actor,
        )  # fmt: skip
        version.folder = f"models/{version.pk}"
        artifacts.publish(folder, version.folder)
        version.save()
        record(actor, "version.create", version, after={"kind": kind, "parent": str(parent) if parent else None})
    return version


def _details(result: dict) -> dict:
    """What its job measured, on one level: a compression reports its own figures below `details`."""
    return {k: v for k, v in result.items() if k not in ("config", "folder", "details", "above")} | result.get("details", {})


# -- evaluation


def newest_set() -> EvaluationSet | None:
    return EvaluationSet.objects.first()


@transaction.atomic
def evaluate(
    *, version: ModelVersion, actor: User | None, evaluation_set: EvaluationSet | None = None, options: dict | None = None, source: str = ""
) -> Evaluation:
    """Queue an evaluation on the newest held-out set of the version's own data, and of the live version on the same set. One that is under way
    and asks the same is not queued again."""
    chosen = evaluation_set or (version.run.evaluation_sets.first() if version.run_id else None) or newest_set()
    if chosen is None:
        raise Conflict(_("There are no held-out questions yet: process a dataset with questions or knowledge entries first."))
    jobs.take_turn(chosen)  # of which all evaluations here are: to take the versions' one after the other would be a deadlock with a promotion
    evaluation = _queue_evaluation(version, chosen, actor, options or {})
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).exclude(pk=version.pk).first()
    if live and not live.evaluations.filter(evaluation_set=chosen).exclude(status__in=(Job.Status.FAILED, Job.Status.CANCELLED)).exists():
        _queue_evaluation(live, chosen, actor, options or {})
    record(actor, "version.evaluate", version, after={"evaluation": evaluation.pk, "set": chosen.sha256[:12]}, source=source)
    jobs.nudge()
    return evaluation


def _queue_evaluation(version: ModelVersion, chosen: EvaluationSet, actor: User | None, options: dict) -> Evaluation:
    if same := _same_evaluation(version, chosen, options):
        return same
    return Evaluation.objects.create(
        title=f"Evaluate {version.name}", model_version=version, evaluation_set=chosen, created_by=actor, options=options, priority=1
    )


def _same_evaluation(version: ModelVersion, chosen: EvaluationSet, options: dict) -> Evaluation | None:
    """One under way that asks the same (to be looked for after `jobs.take_turn` of the set)."""
    rows = jobs.under_way(version.evaluations.filter(evaluation_set=chosen))
    return next((row for row in rows if _asked(row.options) == _asked(options)), None)


def _before_evaluation_resumes(job: Evaluation) -> None:
    jobs.take_turn(job.evaluation_set)
    jobs.require_alone(_same_evaluation(job.model_version, job.evaluation_set, job.options))


def _asked(options: dict) -> dict:
    """What an evaluation does, of its options: a training's holds more."""
    return {name: options.get(name, default) for name, default in EVALUATION_DEFAULTS.items()}


def _prepare_evaluation(job: Evaluation, work: Path) -> Command:
    if job.model_version.kind == ModelVersion.Kind.UPSTREAM:
        require_allowed(spec_of(job.model_version))
    spec = {
        "version": 1,
        "model_folder": str(artifacts.verify(job.model_version.folder, job.model_version.files)),
        "eval_file": str(artifacts.local_path(job.evaluation_set.path)),
        "output_folder": str(work / "evaluation"),
        **_asked(job.options),
        "threads": settings.JOB_THREADS,
        "seed": 0,
    }
    return Command([sys.executable, "-m", "workers.evaluation"], spec)


def _complete_evaluation(job: Evaluation, result: dict, work: Path) -> dict:
    folder = f"evaluations/{job.pk}"
    artifacts.publish(work / "evaluation", folder)
    Evaluation.objects.filter(pk=job.pk).update(folder=folder, metrics=result)
    return result


def _evaluated(job: Job) -> None:
    """Once the row has succeeded: write down what the gate says now."""
    evaluation = Evaluation.objects.select_related("model_version").get(pk=job.pk)
    version = evaluation.model_version
    if version.state == ModelVersion.State.CANDIDATE:
        decide(version)
    # A baseline's figures on this set settle what its candidates and compressed children were waiting for.
    for other in (
        ModelVersion.objects.filter(
            state=ModelVersion.State.CANDIDATE, evaluations__evaluation_set=evaluation.evaluation_set_id, evaluations__status=Job.Status.SUCCEEDED
        )
        .exclude(pk=version.pk)
        .distinct()
    ):
        if version.state == ModelVersion.State.LIVE or other.parent_id == version.pk:
            decide(other)


# -- the gate, promotion, roll-back


def decide(version: ModelVersion) -> GateDecision:
    verdict = gates.verdict(version)
    return GateDecision.objects.create(
        model_version=version, baseline=verdict.baseline, evaluation_set=verdict.evaluation_set, passed=verdict.passed,
        rules=[rule.as_dict() for rule in verdict.rules],
    )  # fmt: skip


def promote(*, version: ModelVersion, actor: User | None, source: str = "") -> Deployment:
    """Make the version live once its gate passes, and the inference workers have loaded it; raises Conflict with every reason where it does not."""
    if version.state != ModelVersion.State.LIVE and gates.verdict(version).passed:
        warm(version)
    with transaction.atomic():
        # The live row is locked, so that two promotions at once are done one after the other.
        live = ModelVersion.objects.select_for_update().filter(state=ModelVersion.State.LIVE).first()
        version.refresh_from_db()
        if live and live.pk == version.pk:
            raise Conflict(_("%(name)s is live already.") % {"name": version.name})
        decision = decide(version)
        if decision.passed:
            return _deploy(version, live, decision, Deployment.Reason.PROMOTION if live else Deployment.Reason.FIRST, actor, source)
        record(actor, "version.promotion_refused", version, after={"rules": [r["name"] for r in decision.rules if not r["passed"]]}, source=source)
    reasons = [f"{_(r['name'])}: {gates.reason_of(r)}" for r in decision.rules if not r["passed"]]
    raise Conflict(
        _("%(name)s cannot go live.") % {"name": version.name} + " " + " ".join(reasons),
        reasons=reasons,
        rules=[gates.told(r) for r in decision.rules],
    )


def rollback(*, version: ModelVersion, actor: User | None, source: str = "") -> Deployment:
    """Take the live version back to the one that served before it, once the inference workers have loaded that."""
    if before := _before(version):
        warm(before)
    with transaction.atomic():
        return _roll_back(version, actor, source)


def _roll_back(version: ModelVersion, actor: User | None, source: str) -> Deployment:
    live = ModelVersion.objects.select_for_update().filter(state=ModelVersion.State.LIVE).first()
    if live is None or version.pk != live.pk:
        raise Conflict(_("%(name)s is not live, so there is nothing to roll back.") % {"name": version.name})
    before = _before(live)
    if before is None:
        raise Conflict(_("%(name)s is the first version that went live; there is none to go back to.") % {"name": version.name})
    return _deploy(before, live, None, Deployment.Reason.ROLLBACK, actor, source)


def _before(live: ModelVersion) -> ModelVersion | None:
    """The version that served before this one."""
    found = Deployment.objects.exclude(model_version=live).order_by("-id").first()
    return found.model_version if found else None


def _deploy(version: ModelVersion, live: ModelVersion | None, decision, reason: str, actor: User | None, source: str) -> Deployment:
    now = timezone.now()
    if live:
        ModelVersion.objects.filter(pk=live.pk).update(state=ModelVersion.State.RETIRED)
        Deployment.objects.filter(ended_at=None).update(ended_at=now)
    ModelVersion.objects.filter(pk=version.pk).update(state=ModelVersion.State.LIVE)
    version.state = ModelVersion.State.LIVE
    deployment = Deployment.objects.create(model_version=version, reason=reason, gate=decision, created_by=actor)
    action = "version.rollback" if reason == Deployment.Reason.ROLLBACK else "version.promote"
    record(actor, action, version, before={"live": live.name if live else None}, after={"live": version.name}, source=source)
    transaction.on_commit(clear_answers, robust=True)  # its keys hold the version: an answer that stays in is no other version's
    return deployment


# -- compression


@transaction.atomic
def compress(*, version: ModelVersion, method: str, options: dict, actor: User | None, source: str = "") -> CompressionJob:
    """Queue it. The same of the same version that is under way is not queued again: that is given."""
    if method not in CompressionJob.Method.values:
        raise Problem(
            _("There is no method %(name)s; choose one of %(names)s.") % {"name": repr(method), "names": ", ".join(CompressionJob.Method.values)},
            field="method",
        )
    if why := applicable(version.kind, method, version.config):
        raise Conflict(retold(why))
    _check_options(method, options)
    if method in ("distill", "policy") and version.run is None:
        raise Conflict(_("%(name)s was not trained here, so there is no text to distil on; train from it first.") % {"name": version.name})
    if refusal := unusable(_known_of(version), method, options, {preset["name"]: preset["total_parameters"] for preset in presets()}):
        raise Problem(retold(refusal.reason), field=refusal.field)
    if same := _same_compression(version, method, options):
        return same
    with override("en"):  # rows are in English, whoever asks; pages retell them
        title = f"{CompressionJob.Method(method).label} of {version.name}"[:200]
    job = CompressionJob.objects.create(title=title, model_version=version, method=method, options=options, created_by=actor)
    record(actor, "version.compress", version, after={"method": method, **options}, source=source)
    jobs.nudge()
    return job


def _same_compression(version: ModelVersion, method: str, options: dict) -> CompressionJob | None:
    """One under way that does the same to the version; whoever else begins to compress that waits."""
    jobs.take_turn(version)
    rows = jobs.under_way(version.compression_jobs.filter(method=method))
    return next((row for row in rows if _meant(method, row.options) == _meant(method, options)), None)


def _before_compression_resumes(job: CompressionJob) -> None:
    jobs.require_alone(_same_compression(job.model_version, job.method, job.options))


def _known_of(version: ModelVersion) -> Known:
    questions = version.run_id is not None and version.run.evaluation_sets.filter(questions__gt=0).exists()
    return Known(version.config, version.total_parameters, version.run_id is not None, questions)


MAX_MINUTES = 7 * 24 * 60


def _meant(method: str, options: dict) -> dict:
    """With the defaults: equal where the same is asked for, however much of it is said."""
    return {name: CompressSpec.model_fields[name].default for name in OPTIONS[method]} | options


def _check_options(method: str, options: dict) -> None:
    """Refuse now, at its field, what the child process would refuse in a minute, and what it would not look at."""
    if strange := [name for name in options if name not in OPTIONS[method]]:
        takers = ", ".join(other for other, names in OPTIONS.items() if strange[0] in names)
        raise Problem(
            _("%(option)s is an option of %(methods)s, and %(method)s does not look at it. Leave it out, or choose another method.")
            % {"option": strange[0], "methods": takers, "method": method},
            field=strange[0], fields=strange,
        )  # fmt: skip
    if method == "prune" and options.get("structure") != "2:4" and options.get("threshold") is None and options.get("sparsity") is None:
        raise Problem(_("Give a threshold (weights smaller than it go) or a sparsity (the share of weights that goes)."), field="sparsity")
    if options.get("student") and options["student"] not in PRESETS:
        raise Problem(_("There is no preset %(name)s; see /api/v1/presets/.") % {"name": repr(options["student"])}, field="student")
    if (options.get("minutes") or 0) > MAX_MINUTES:
        raise Problem(_("The minutes must be at most a week."), field="minutes")
    nowhere = Path()
    try:
        CompressSpec(method=method, model_folder=nowhere, output_folder=nowhere, work_folder=nowhere, **options)
    except ValidationError as error:
        first = error.errors()[0]
        together = {"prune": "sparsity", "distill": "steps"}.get(method, "method")
        raise Problem(retold(first["msg"].removeprefix("Value error, ")), field=str(first["loc"][0]) if first["loc"] else together) from error


def _prepare_compression(job: CompressionJob, work: Path) -> Command:
    version = job.model_version
    spec = {
        "version": 1,
        "method": job.method,
        "model_folder": str(artifacts.verify(version.folder, version.files)),
        "output_folder": str(work / "model"),
        "work_folder": str(work),
        "dataset_folder": str(artifacts.local_path(version.run.folder)) if version.run else None,
        "threads": settings.JOB_THREADS,
        "seed": 0,
        **{k: v for k, v in job.options.items() if k in OPTIONS[job.method]},
    }
    return Command([sys.executable, "-m", "workers.compression"], spec)


def _complete_compression(job: CompressionJob, result: dict, work: Path) -> dict:
    """The child, and the models between it and its parent (a student that became INT8): each is a version, evaluated and gated like any other."""
    version = job.model_version
    for made in [*result.get("above", []), result | {"folder": "model"}]:
        version = register_version(
            kind=made["kind"], folder=work / made["folder"], parent=version, run=job.model_version.run, compression_job=job, result=made,
            actor=job.created_by,
        )  # fmt: skip
        if newest_set():  # without held-out questions, as on a portal that only imported a model, there is nothing to evaluate it on
            evaluate(version=version, actor=job.created_by)
    if trail := result.get("details", {}).get("trail"):
        CompressionJob.objects.filter(pk=job.pk).update(trail=trail)
    return {**result, "folder": version.folder, "model_version": version.pk}


register(Job.Kind.EVALUATION, Run(_prepare_evaluation, _complete_evaluation, succeeded=_evaluated, before_resume=_before_evaluation_resumes))
register(Job.Kind.COMPRESSION, Run(_prepare_compression, _complete_compression, before_resume=_before_compression_resumes))
