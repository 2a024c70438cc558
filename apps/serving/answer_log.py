"""The log of answers: each is written to Redis as it ends, and a moment later, many at once, to the database.

A row's insert takes longer than an answer from the cache does; a message to Redis does not. None is lost by a process's death: an entry leaves
the stream once its row is committed, whoever committed it, and one that is written twice is the same row by its id. Whoever reads answers asks
`answers()`, which first writes down what waits, so that one's own is there at once.
"""

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import orjson
import redis
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connections, models, router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from apps.experiments.models import Experiment
from apps.monitoring import names
from apps.redis import Ledger, connection
from apps.serving.models import Answer
from apps.serving.redaction import redacted

log = logging.getLogger(__name__)

BATCH = 1000  # rows in one transaction


def append(row: dict[str, Any], ledger: Ledger) -> None:
    """Write an answer down when `ledger` is written. `row`: columns of `Answer`, by the names of its attributes."""
    ledger.append(names.ANSWER_LOG, {"row": orjson.dumps(row)})


def answers() -> QuerySet[Answer]:
    """All rows, those of this moment included."""
    settle_where_possible()
    return Answer.objects.all()


def settle_where_possible() -> None:
    """What is in the database can be read without Redis too."""
    try:
        settle()
    except redis.RedisError as error:
        log.warning("the newest answers cannot be read: %s", error)


def settle() -> int:
    """Write down in the database what waits now; how many rows. Several processes may do so at once."""
    r = connection()
    newest, last, written = r.xrevrange(names.ANSWER_LOG, count=1), "-", 0
    while newest and (entries := r.xrange(names.ANSWER_LOG, min=last, max=newest[0][0], count=BATCH)):
        rows = [row for _, entry in entries if (row := _read(entry["row"])) is not None]
        with transaction.atomic():
            write(rows)
            _forget_once_committed([number for number, _ in entries])
        written += len(rows)
        last = f"({entries[-1][0]}"
    return written


def write(rows: list[Answer]) -> None:
    """Into the database, those that are not there yet. One statement for all of them: Django's `bulk_create` compiles every value of every row,
    which takes longer than all the rest."""
    if not (rows := _with_existing([redacted(row) for row in rows])):
        return
    database = connections[router.db_for_write(Answer)]
    columns = [(field.attname, field.get_db_prep_save) for field in _fields()]
    quote = database.ops.quote_name
    into = f"{quote(Answer._meta.db_table)} ({', '.join(quote(field.column) for field in _fields())})"
    with database.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {into} VALUES ({', '.join(['%s'] * len(columns))}) ON CONFLICT DO NOTHING",  # noqa: S608 — no value is in it
            [[prepare(getattr(row, attname), database) for attname, prepare in columns] for row in rows],
        )


def forget_old() -> int:
    """Delete the answers that are older than they are to be kept; how many. Ratings are what the next training learns from, and a running experiment
    counts its answers: those stay."""
    if not settings.ANSWERS_KEPT_DAYS:
        return 0
    before = timezone.now() - timedelta(days=settings.ANSWERS_KEPT_DAYS)
    old = Answer.objects.filter(created_at__lt=before, feedback=None).exclude(experiment__status=Experiment.Status.RUNNING).order_by()
    forgotten = 0
    while ids := list(old.values_list("pk", flat=True)[:BATCH]):
        forgotten += Answer.objects.filter(pk__in=ids).delete()[0]
    return forgotten


def _forget_once_committed(numbers: list[str]) -> None:
    transaction.on_commit(lambda: connection().xdel(names.ANSWER_LOG, *numbers), robust=True)


def _fields() -> list[models.Field]:
    return Answer._meta.concrete_fields


def _read(text: str) -> Answer | None:
    """None for an entry that is no answer's: of another release, say. It must not hold up those behind it."""
    try:
        values = orjson.loads(text)
        return Answer(*(field.to_python(values[name]) if (name := field.attname) in values else field.get_default() for field in _fields()))
    except (ValueError, TypeError, ValidationError):
        log.exception("an entry of the answers' log cannot be read: %s", text[:1000])
        return None


def _with_existing(rows: list[Answer]) -> list[Answer]:
    """What they refer to may have gone meanwhile: a conversation that was forgotten, a person who left. Without its version an answer is nobody's."""
    for field in (field for field in _fields() if field.is_relation):
        named = {key for row in rows if (key := getattr(row, field.attname)) is not None}
        there = _existing(field, named)
        for row in rows:
            if getattr(row, field.attname) not in there:
                setattr(row, field.attname, None)
    gone = [row for row in rows if row.model_version_id is None]
    if gone:
        log.error("answers of versions that are gone are not kept: %s", [row.pk for row in gone])
    return [row for row in rows if row.model_version_id is not None]


def _existing(field: models.Field, keys: Iterable[Any]) -> set[Any]:
    return set(field.related_model._base_manager.filter(pk__in=list(keys)).values_list("pk", flat=True)) if keys else set()
