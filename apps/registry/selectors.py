from collections import Counter
from collections.abc import Sequence

from django.db import connection
from django.db.models import Prefetch, QuerySet

from apps.jobs.models import Job
from apps.registry.models import Evaluation, GateDecision, ModelVersion


def versions() -> QuerySet[ModelVersion]:
    """Versions, each with its parent and its finished evaluations (`finished`, newest set first): two queries whatever the number."""
    finished = Evaluation.objects.filter(status=Job.Status.SUCCEEDED).order_by("-evaluation_set_id", "-id").select_related("evaluation_set")
    return ModelVersion.objects.select_related("parent", "draft", "training_job", "run__dataset", "created_by").prefetch_related(
        Prefetch("evaluations", queryset=finished, to_attr="finished")
    )


def latest_evaluation(version: ModelVersion) -> Evaluation | None:
    return version.finished[0] if version.finished else None


def comparable_evaluations(found: Sequence[ModelVersion]) -> list[tuple[ModelVersion, Evaluation | None]]:
    """Each with its evaluation on the set that most of them were asked (the newest of such); one that was not, with its latest."""
    asked = Counter(pk for version in found for pk in {evaluation.evaluation_set_id for evaluation in version.finished})
    shared = max(asked, key=lambda pk: (asked[pk], pk), default=None)
    return [(version, next((each for each in version.finished if each.evaluation_set_id == shared), latest_evaluation(version))) for version in found]


def live_version() -> ModelVersion | None:
    return ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()


def lineage(version: ModelVersion) -> list[ModelVersion]:
    """From the oldest ancestor down to the version itself: two queries, however long the line."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE line(id, parent_id, depth) AS (
                SELECT id, parent_id, 0 FROM registry_modelversion WHERE id = %s
                UNION ALL
                SELECT v.id, v.parent_id, line.depth + 1 FROM registry_modelversion v JOIN line ON v.id = line.parent_id WHERE line.depth < 1000
            )
            SELECT id FROM line ORDER BY depth DESC
            """,
            [version.pk],
        )
        ids = [row[0] for row in cursor.fetchall()]
    rows = ModelVersion.objects.select_related("training_job__dataset", "compression_job", "parent", "run__dataset").in_bulk(ids)
    return [rows[pk] for pk in ids]


def family(version: ModelVersion) -> list[ModelVersion]:
    """All that came of the oldest ancestor, itself included: one query."""
    found = ModelVersion.objects.raw(
        """
        WITH RECURSIVE line(id, parent_id, depth) AS (
            SELECT id, parent_id, 0 FROM registry_modelversion WHERE id = %s
            UNION ALL
            SELECT v.id, v.parent_id, line.depth + 1 FROM registry_modelversion v JOIN line ON v.id = line.parent_id WHERE line.depth < 1000
        ), family(id, depth) AS (
            SELECT id, 0 FROM line WHERE parent_id IS NULL
            UNION ALL
            SELECT v.id, family.depth + 1 FROM registry_modelversion v JOIN family ON v.parent_id = family.id WHERE family.depth < 1000
        )
        SELECT * FROM registry_modelversion WHERE id IN (SELECT id FROM family)
        """,
        [version.pk],
    )
    return list(found)


def latest_decision(version: ModelVersion) -> GateDecision | None:
    return version.gate_decisions.select_related("baseline", "evaluation_set").first()
