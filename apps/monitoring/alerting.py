"""Alerts as rows: pending → firing → resolved, one open row a rule; acknowledged, silenced, told to whoever asked to be told."""

import logging
from datetime import datetime, timedelta

from django.db import DatabaseError, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem
from apps.accounts.services import record
from apps.monitoring import names
from apps.monitoring.models import Alert, Notice, Silence
from apps.monitoring.notifying import NotTold, notify
from apps.monitoring.rules import RULES, AlertRule
from apps.redis import connection

log = logging.getLogger(__name__)

VALUES_COUNT_SECONDS = 30  # while beat lives it measures every five
MOST_SILENT_MINUTES = 7 * 24 * 60
FIRST_PATIENCE_SECONDS, MOST_TRIES = 5, 9  # the last one 21 minutes after the first


def evaluate_alerts() -> None:
    """One rule that cannot be measured keeps no other from being judged."""
    measured: dict[str, float] = {}
    for rule in RULES:
        try:
            value = rule.measure()
        except DatabaseError:
            log.exception("the alert rule %s cannot be measured", rule.name)
            continue
        _judge(rule, value)
        if value is not None:
            measured[rule.name] = value
    _publish(measured)


def _publish(measured: dict[str, float]) -> None:
    pipe = connection().pipeline()
    pipe.delete(names.ALERT_VALUES)
    if measured:
        pipe.hset(names.ALERT_VALUES, mapping=measured)
        pipe.expire(names.ALERT_VALUES, VALUES_COUNT_SECONDS)
    pipe.execute()


@transaction.atomic
def _judge(rule: AlertRule, value: float | None) -> None:
    now = timezone.now()
    row = Alert.objects.filter(rule=rule.name).exclude(state=Alert.State.RESOLVED).first()
    if value is not None and value > rule.threshold:
        message = rule.said(value)
        if row is None:
            Alert.objects.create(rule=rule.name, value=value, threshold=rule.threshold, message=message)
        elif row.state == Alert.State.PENDING and now - row.started_at >= timedelta(seconds=rule.for_seconds):
            changes = {"state": Alert.State.FIRING, "fired_at": now, "value": max(value, row.value), "message": message, "resolved_at": None}
            Alert.objects.filter(pk=row.pk, state=Alert.State.PENDING).update(**changes)
            Notice.objects.create(alert=row, state=Alert.State.FIRING, due_at=now)
        else:
            Alert.objects.filter(pk=row.pk).update(value=max(value, row.value), resolved_at=None)
    elif row is None:
        return
    elif row.state == Alert.State.PENDING:
        row.delete()  # a peak too short to tell anybody of
    elif row.resolved_at is None:  # below: wait whether it stays so
        Alert.objects.filter(pk=row.pk).update(resolved_at=now)
    elif now - row.resolved_at >= timedelta(seconds=rule.for_seconds):
        Alert.objects.filter(pk=row.pk).update(state=Alert.State.RESOLVED)
        Notice.objects.create(alert=row, state=Alert.State.RESOLVED, due_at=now)


def tell_due() -> None:
    """Tell people of what is due. Who was not reached is tried again after 5, 10, 20 … seconds; what is silenced waits, and is told when the silence ends
    before the alert does."""
    now = timezone.now()
    silenced = set(silences(now).values_list("rule", flat=True))
    for notice in Notice.objects.filter(due_at__lte=now).select_related("alert"):
        if _is_past(notice, silenced):
            Notice.objects.filter(pk=notice.pk).update(due_at=None)
        elif not silenced & {notice.alert.rule, ""}:
            _try_to_tell(notice, now)


def _is_past(notice: Notice, silenced: set[str]) -> bool:
    """Nobody needs to hear it any more: that an alert fired, once it is over; nor that it is over, of those that nobody was told of."""
    if notice.alert.state != Alert.State.RESOLVED:
        return False
    began = notice.alert.notices.filter(state=Alert.State.FIRING).first()
    return notice.state == Alert.State.FIRING or bool(silenced & {notice.alert.rule, ""}) or bool(began and not began.tries)


def _try_to_tell(notice: Notice, now: datetime) -> None:
    """Whoever dies in the middle has put it off, not lost it; of two who try, one does."""
    again = now + timedelta(seconds=FIRST_PATIENCE_SECONDS * 2**notice.tries)
    mine = Notice.objects.filter(pk=notice.pk, tries=notice.tries)
    if not mine.update(tries=notice.tries + 1, due_at=again if notice.tries < MOST_TRIES - 1 else None):
        return
    try:
        known = {"known_by": notify(notice.alert, notice.known_by), "due_at": None}
    except NotTold as error:
        log.warning("alert %s: %s", notice.alert.pk, error.args[0])
        known = {"known_by": error.args[1]}
    Notice.objects.filter(pk=notice.pk).update(**known)


def silences(now: datetime | None = None) -> QuerySet[Silence]:
    return Silence.objects.filter(until__gt=now or timezone.now(), ended_at=None).select_related("created_by")


@transaction.atomic
def acknowledge(*, alert: Alert, actor: User, source: str = "") -> Alert:
    if alert.state == Alert.State.RESOLVED:
        raise Conflict(_("This alert is resolved; there is nothing to acknowledge."))
    if alert.acknowledged_at is None:
        alert.acknowledged_at, alert.acknowledged_by = timezone.now(), actor
        alert.save(update_fields=["acknowledged_at", "acknowledged_by"])
        record(actor, "alert.acknowledge", alert, after={"rule": alert.rule}, source=source)
    return alert


@transaction.atomic
def silence(*, rule: str, minutes: int, actor: User, reason: str = "", source: str = "") -> Silence:
    """Nobody is told of the rule (of all, where it is empty) for so long. The alert is still judged and shown."""
    if rule and rule not in {each.name for each in RULES}:
        raise Problem(_("There is no rule %(name)s.") % {"name": repr(rule)}, field="rule")
    if not 1 <= minutes <= MOST_SILENT_MINUTES:
        raise Problem(_("Silence a rule for 1 to %(most)s minutes.") % {"most": f"{MOST_SILENT_MINUTES:,}"}, field="minutes")
    row = Silence.objects.create(rule=rule, reason=reason[:200], until=timezone.now() + timedelta(minutes=minutes), created_by=actor)
    record(actor, "alert.silence", row, after={"rule": rule or "all", "minutes": minutes}, source=source)
    return row


@transaction.atomic
def end_silence(*, row: Silence, actor: User, source: str = "") -> Silence:
    if row.ended_at is None:
        row.ended_at = timezone.now()
        row.save(update_fields=["ended_at"])
        record(actor, "alert.unsilence", row, after={"rule": row.rule or "all"}, source=source)
    return row
