"""The Celery application: two worker roles (`jobs`, `inference`), a light third one beside beat, one schedule in the settings."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dsportal.settings")
app = Celery("dsportal")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.imports = ["workers.tasks.jobs", "workers.tasks.answers", "workers.tasks.embeddings", "workers.tasks.beat"]
