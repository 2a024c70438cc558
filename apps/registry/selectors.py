from django.db.models import Prefetch, QuerySet

from apps.jobs.models import Job
from apps.registry.models import Evaluation, GateDecision, ModelVersion


def versions() -> QuerySet[ModelVersion]:
    """Versions, each with its parent and its finished evaluations (`finished`, newest set first): two queries whatever the number."""
    finished = Evaluation.objects.filter(status=Job.Status.SUCCEEDED).order_by("-evaluation_set_id", "-id").select_related("evaluation_set")
    return ModelVersion.objects.select_related("parent", "training_job", "run__dataset", "created_by").prefetch_related(
        Prefetch("evaluations", queryset=finished, to_attr="finished")
    )


def latest_evaluation(version: ModelVersion) -> Evaluation | None:
    return version.finished[0] if version.finished else None


def live_version() -> ModelVersion | None:
    return ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()


def lineage(version: ModelVersion) -> list[ModelVersion]:
    """From the oldest ancestor down to the version itself."""
    chain = [version]
    while chain[0].parent_id:
        chain.insert(0, ModelVersion.objects.select_related("training_job__dataset", "parent", "run__dataset").get(pk=chain[0].parent_id))
    return chain


def latest_decision(version: ModelVersion) -> GateDecision | None:
    return version.gate_decisions.select_related("baseline", "evaluation_set").first()
