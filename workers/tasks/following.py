"""An inference worker holds the versions that will be asked: the live one, those in a running experiment, and those about to go live."""

import logging
import threading
import time

from django.db import DatabaseError, close_old_connections
from redis import RedisError

from apps.monitoring import names
from apps.monitoring.selectors import workers
from apps.redis import connection
from apps.serving import warming
from workers.tasks.engines import Engines

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 2.0
RECONNECT_SECONDS = 0.5


def load_first(engines: Engines) -> None:
    """As long as others answer, a worker takes no question before it holds what is asked: those that it took would wait for the loading."""
    try:
        if workers("inference"):
            engines.prepare(warming.wanted())
    except (RedisError, DatabaseError) as error:
        log.warning("nothing is loaded ahead: %s", error)


def follow(engines: Engines, worker: str) -> None:
    """From a thread of its own, which loading may hold up: nothing else waits for it."""
    threading.Thread(target=_follow, args=(engines, worker), name="follow", daemon=True).start()


def _follow(engines: Engines, worker: str) -> None:
    while True:
        try:
            with connection().pubsub() as channel:
                channel.subscribe(names.ENGINES_ASKED)
                while True:
                    look(engines, worker)
                    channel.get_message(timeout=FOLLOW_SECONDS)
        except (RedisError, DatabaseError) as error:
            log.warning("the live version cannot be followed: %s", error)
            time.sleep(RECONNECT_SECONDS)


def look(engines: Engines, worker: str) -> None:
    """Once: load what is wanted, and tell those who wait for it."""
    close_old_connections()
    warming.report_following(worker)
    wanted = warming.wanted()
    failures = engines.prepare(wanted)
    engines.follow_drafts()
    for version, why in failures.items():
        log.warning("%s cannot be loaded: %s", version, why)
    warming.report(worker, {version: failures.get(version, "") for version in wanted})
