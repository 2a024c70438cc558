"""For machines that watch: Prometheus, and whatever restarts or routes. Open to all: they hold no secret and change nothing."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily

from apps.jobs.models import Job
from apps.monitoring import names
from apps.monitoring.presence import present
from apps.monitoring.rollups import ROLES, queue_depth
from apps.monitoring.selectors import workers
from apps.redis import connection as redis_connection
from apps.registry.models import ModelVersion
from apps.serving.models import Deployment
from dsportal.metrics_folder import held_still


class Shared:
    """What all processes share, read from the database and Redis when it is asked for; what cannot be read is left out."""

    def collect(self):
        disk = shutil.disk_usage(settings.HOME)
        yield GaugeMetricFamily(names.DISK_FREE, "Of the disk that the home is on", value=disk.free)
        yield GaugeMetricFamily(names.DISK_SIZE, "Of the disk that the home is on", value=disk.total)
        waiting = GaugeMetricFamily(names.JOBS_WAITING, "Jobs that are queued or running", labels=["kind", "status"])
        try:
            active = Job.objects.filter(status__in=(Job.Status.QUEUED, Job.Status.RUNNING)).order_by()
            found = {(kind, status): count for kind, status, count in active.values_list("kind", "status").annotate(Count("id"))}
            for kind in Job.Kind.values:
                for status in (Job.Status.QUEUED, Job.Status.RUNNING):
                    waiting.add_metric([kind, status], found.get((kind, status), 0))
            yield waiting
            live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).count()
            yield GaugeMetricFamily(names.LIVE_VERSIONS, "Versions that answer whoever names none: one, or none", value=live)
            since = Deployment.objects.filter(ended_at=None).values_list("started_at", flat=True).first()
            yield GaugeMetricFamily(
                names.LIVE_SINCE, "When the live version was promoted, or rolled back to", value=since.timestamp() if since else 0
            )
        except DatabaseError:
            pass
        try:
            yield GaugeMetricFamily(names.QUEUE_DEPTH, "Answers asked for and not finished", value=queue_depth())
            yield GaugeMetricFamily(names.QUEUE_LIMIT, "Beyond so many they are refused", value=settings.MAX_IN_FLIGHT)
            values = GaugeMetricFamily(names.ALERT_VALUE, "What an alert rule measured last", labels=["rule"])
            for rule, value in sorted(redis_connection().hgetall(names.ALERT_VALUES).items()):
                values.add_metric([rule], float(value))
            yield values
            replicas = GaugeMetricFamily(names.WORKERS, "Processes that say they live", labels=["role"])
            memory = GaugeMetricFamily(names.WORKER_MEMORY, "Resident memory of a process", labels=["role", "worker"])
            for role in ROLES:
                found = present(role)
                replicas.add_metric([role], len(found))
                for worker, memory_bytes in found.items():
                    memory.add_metric([role, worker], memory_bytes)
            yield replicas
            yield memory
            yield GaugeMetricFamily(names.REDIS_MEMORY, "Of Redis", value=redis_connection().info("memory")["used_memory"])
        except redis.RedisError:
            pass


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text of all processes of this machine, where they share PROMETHEUS_MULTIPROC_DIR; else of this one."""
    shared = CollectorRegistry()
    shared.register(Shared())
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry, still = CollectorRegistry(), held_still(Path(folder))
        multiprocess.MultiProcessCollector(registry)
    else:
        registry, still = REGISTRY, nullcontext()
    with still:
        counted = generate_latest(registry)
    return HttpResponse(counted + generate_latest(shared), content_type=CONTENT_TYPE_LATEST)


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """The process lives."""
    return HttpResponse("ok\n", content_type="text/plain")


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """It can serve: the database, Redis and, where a version is live, an inference worker are there."""
    reasons = {}
    live = False
    try:
        connection.ensure_connection()
        live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).exists()
    except DatabaseError as error:
        reasons["database"] = f"The database cannot be reached: {type(error).__name__}."
    try:
        redis_connection().ping()
        if live and not workers("inference"):
            reasons["inference"] = "A version is live but no inference worker is running."
    except redis.RedisError as error:
        reasons["redis"] = f"Redis cannot be reached: {type(error).__name__}."
    return JsonResponse({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


urlpatterns = [path("metrics", metrics), path("healthz", healthz), path("readyz", readyz)]
