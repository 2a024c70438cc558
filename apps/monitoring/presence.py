"""A process says that it lives: a key in Redis that expires soon after the process."""

import logging
import threading
import time

import redis
from django.conf import settings
from prometheus_client import start_http_server

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.5
EXPIRES_SECONDS = 5


def keep_presence(role: str, name: str, stop: threading.Event | None = None) -> None:
    """Beat from a daemon thread until the process ends or `stop` is set; serve /metrics where a port is given."""
    if settings.METRICS_PORT and role != "web":  # which serves its own
        start_http_server(settings.METRICS_PORT)

    def beat() -> None:
        key = names.WORKER.format(role=role, name=name.replace(":", "-"))
        while not (stop and stop.is_set()):
            try:
                connection().set(key, int(time.time()), ex=EXPIRES_SECONDS)
            except redis.RedisError as error:
                log.warning("cannot say that %s lives: %s", name, error)
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=beat, name="presence", daemon=True).start()
