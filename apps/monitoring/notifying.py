"""Tell people of an alert: webhooks (in Slack's form, which Mattermost and others read too) and e-mail. Whoever calls tries again."""

import httpx
from django.conf import settings
from django.core.mail import send_mail

from apps.monitoring.models import Alert

TIMEOUT_SECONDS = 5.0


class NotTold(Exception):
    """Some could not be reached; the message names them without what is secret in their addresses."""


def notify(alert: Alert, already: list[str]) -> list[str]:
    """Tell everybody who is not in `already`; returns all who know now. NotTold, with those who do in `args[1]`."""
    told, failed = list(already), []
    for number, url in enumerate(settings.ALERT_WEBHOOKS):
        name = f"webhook {number + 1}"
        if name not in told:
            try:
                httpx.post(url, json=_payload(alert), timeout=TIMEOUT_SECONDS).raise_for_status()
                told.append(name)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failed.append(f"{name} ({type(error).__name__})")
    if settings.ALERT_EMAILS and "e-mail" not in told:
        try:
            send_mail(f"[DSPortal] {alert.rule} {alert.state}", _text(alert), settings.DEFAULT_FROM_EMAIL, settings.ALERT_EMAILS)
            told.append("e-mail")
        except OSError as error:
            failed.append(f"e-mail ({type(error).__name__})")
    if failed:
        raise NotTold(f"not told: {', '.join(failed)}", told)
    return told


def _text(alert: Alert) -> str:
    link = f"\n{settings.PUBLIC_URL}/monitoring/" if settings.PUBLIC_URL else ""
    return f"{alert.rule.replace('_', ' ')}: {alert.state}. {alert.message}{link}"


def _payload(alert: Alert) -> dict:
    """`text` is all that Slack reads; the rest is for programs."""
    sign = {Alert.State.FIRING: "🔴", Alert.State.RESOLVED: "🟢"}.get(alert.state, "⚪")
    facts = {name: getattr(alert, name) for name in ("rule", "state", "value", "threshold", "message")}
    times = {name: when.isoformat() if (when := getattr(alert, name)) else None for name in ("started_at", "fired_at", "resolved_at")}
    return {"text": f"{sign} {_text(alert)}", "alert": {"id": alert.pk, **facts, **times}}
