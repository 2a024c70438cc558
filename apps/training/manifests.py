"""A training job written down for an existing scheduler, with as many ranks as its fleet has."""

from django.utils.translation import gettext as _

from apps.accounts.problems import Missing, Problem
from apps.jobs.runs import work_folder
from apps.training.models import TrainingJob
from apps.training.services import spec_of
from workers.protocol import JobError
from workers.training.manifests import SCHEDULERS, SUFFIXES, Fleet
from workers.training.spec import TrainSpec


def manifest(job: TrainingJob, scheduler: str, *, device: str = "", **fleet) -> tuple[str, str]:
    """The text, and the name of the file to keep it in. `fleet`: the fields of `Fleet` but the name. Raises Missing and Problem."""
    if scheduler not in SCHEDULERS:
        raise Missing(_("There is no scheduler %(name)s; there are %(known)s.") % {"name": repr(scheduler), "known": ", ".join(SCHEDULERS)})
    spec = spec_of(job, work_folder(job).absolute()) | ({"device": device} if device else {})
    name = f"train-{job.pk.lower()}"
    try:
        return SCHEDULERS[scheduler](TrainSpec.model_validate(spec), Fleet(name=name, **fleet)), f"{name}.{SUFFIXES[scheduler]}"
    except JobError as error:
        raise Problem(str(error), field="nodes", fields=["nodes", "ranks_per_node"]) from error
