import json
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.db.models import QuerySet

from apps.training.models import TrainingJob

PRESETS_FILE = Path(settings.BASE_DIR) / "workers" / "moe" / "presets.json"


@lru_cache(maxsize=1)
def presets() -> list[dict]:
    """Each preset with its parameters as counted on the meta device; `workers/moe/presets.json` is written by a command and held by a test."""
    return json.loads(PRESETS_FILE.read_text())


def preset(name: str) -> dict | None:
    return next((p for p in presets() if p["name"] == name), None)


def training_jobs() -> QuerySet[TrainingJob]:
    return TrainingJob.objects.select_related("dataset", "parent", "model_version", "created_by").order_by("-id")
