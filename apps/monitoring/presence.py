"""A process says that it lives, and how much memory it has: an entry in Redis that counts no longer than the process lives, or a little."""

import logging
import threading
import time

import psutil
import redis
from django.conf import settings
from prometheus_client import start_http_server

from apps.monitoring import names
from apps.redis import connection

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.5
EXPIRES_SECONDS = 5
FORGOTTEN_SECONDS = 60


def keep_presence(role: str, name: str, stop: threading.Event | None = None) -> None:
    """Beat from a daemon thread until the process ends or `stop` is set; serve /metrics where a port is given."""
    if settings.METRICS_PORT and role != "web":  # which serves its own
        start_http_server(settings.METRICS_PORT)
    process = psutil.Process()

    def beat() -> None:
        while not (stop and stop.is_set()):
            try:
                be_present(role, name.replace(":", "-"), memory_bytes=process.memory_info().rss)
            except redis.RedisError as error:
                log.warning("cannot say that %s lives: %s", name, error)
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=beat, name="presence", daemon=True).start()


def be_present(role: str, name: str, *, memory_bytes: int = 0, seconds: float = EXPIRES_SECONDS) -> None:
    """Not by a key of each process: to find those by their pattern is to look at every key that there is."""
    connection().hset(names.PRESENT.format(role=role), name, f"{time.time() + seconds:.3f} {memory_bytes}")


def present(role: str) -> dict[str, int]:
    """Names of the processes of a role that are beating, with their memory in bytes."""
    found, now = {}, time.time()
    for name, said in connection().hgetall(names.PRESENT.format(role=role)).items():
        until, memory_bytes = said.split()
        if float(until) > now:
            found[name] = int(memory_bytes)
    return dict(sorted(found.items()))


def forget_absent(role: str) -> None:
    key = names.PRESENT.format(role=role)
    long_gone = [name for name, said in connection().hgetall(key).items() if float(said.split()[0]) < time.time() - FORGOTTEN_SECONDS]
    if long_gone:
        connection().hdel(key, *long_gone)
