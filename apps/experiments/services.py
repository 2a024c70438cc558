"""Experiments: create, start, stop."""

from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem
from apps.accounts.services import record
from apps.experiments.models import Experiment
from apps.registry.models import ModelVersion
from apps.serving import epoch
from apps.serving.warming import warm

METRICS = ("rating", "accuracy", "recall", "latency")


@transaction.atomic
def create(
    *,
    control: ModelVersion,
    treatment: ModelVersion,
    split: float = 0.5,
    metrics: list[str] | None = None,
    name: str = "",
    actor: User,
    source: str = "",
) -> Experiment:
    if control.pk == treatment.pk:
        raise Problem(_("The two arms are the same version; choose another treatment."), field="treatment")
    if not 0 < split < 1:
        raise Problem(_("The split is the treatment's share of the conversations: more than 0 and less than 1."), field="split")
    metrics = metrics or list(METRICS)
    if unknown := set(metrics) - set(METRICS):
        raise Problem(
            _("There is no metric %(name)s; choose among %(names)s.") % {"name": repr(sorted(unknown)[0]), "names": ", ".join(METRICS)},
            field="metrics",
        )
    experiment = Experiment.objects.create(
        name=(name.strip() or f"{control.name} against {treatment.name}")[:120], control=control, treatment=treatment, split=split,
        metrics=metrics, created_by=actor,
    )  # fmt: skip
    record(actor, "experiment.create", experiment, after={"control": control.name, "treatment": treatment.name, "split": split}, source=source)
    return experiment


def start(*, experiment: Experiment, actor: User, source: str = "") -> Experiment:
    """Once the inference workers have loaded both arms."""
    warm(experiment.control, experiment.treatment)
    try:
        with transaction.atomic():
            now = timezone.now()
            if not Experiment.objects.filter(pk=experiment.pk, status=Experiment.Status.DRAFT).update(status="running", started_at=now):
                raise Conflict(_("This experiment was started before; create a new one, so that its figures stay its own."))
            record(actor, "experiment.start", experiment, before={"status": "draft"}, after={"status": "running"}, source=source)
            transaction.on_commit(epoch.change, robust=True)
    except IntegrityError as error:
        raise Conflict(_("Another experiment is running; stop it first. Traffic can only be split once at a time.")) from error
    experiment.refresh_from_db()
    return experiment


@transaction.atomic
def stop(*, experiment: Experiment, actor: User, source: str = "") -> Experiment:
    if not Experiment.objects.filter(pk=experiment.pk, status=Experiment.Status.RUNNING).update(status="stopped", stopped_at=timezone.now()):
        raise Conflict(_("This experiment is not running."))
    record(actor, "experiment.stop", experiment, before={"status": "running"}, after={"status": "stopped"}, source=source)
    transaction.on_commit(epoch.change, robust=True)
    experiment.refresh_from_db()
    return experiment
