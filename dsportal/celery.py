"""The Celery application: two worker roles (`jobs`, `inference`), a light third one beside beat, one schedule in the settings."""

import os

from celery import Celery
from kombu.exceptions import OperationalError

TRIES = 3

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dsportal.settings")


class PortalCelery(Celery):
    def send_task(self, *args, **options):
        """OperationalError, and nothing else, while the broker is away.

        While a connection breaks, kombu may still hand out its channel, which has no connection any more: an AttributeError of None.
        """
        for _ in range(TRIES):
            try:
                return super().send_task(*args, **options)
            except AttributeError as error:
                if error.obj is not None:
                    raise
                lost = error
        raise OperationalError("the connection to the broker was given up") from lost


app = PortalCelery("dsportal")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.imports = ["workers.tasks.jobs", "workers.tasks.answers", "workers.tasks.embeddings", "workers.tasks.beat"]
