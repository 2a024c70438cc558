"""The portal's own alert rules as a rules file for Prometheus, for fleets that are watched from there."""

import re

import yaml

from apps.monitoring.rules import RULES, AlertRule, Sentence

_HOLE = re.compile(r"\{(value|threshold)(?::([^}]*))?\}")
HEAD = "# Written by `python manage.py prometheus_rules`, from apps/monitoring/rules.py: change those, and run it again.\n"


def document() -> str:
    """YAML, as `promtool check rules` takes it."""
    group = {"name": "dsportal", "rules": [_rule(rule) for rule in RULES]}
    return HEAD + yaml.safe_dump({"groups": [group]}, sort_keys=False, width=150, allow_unicode=True)


def _rule(rule: AlertRule) -> dict:
    summary, _dot, advice = _said(rule).partition(". ")
    annotations = {"summary": summary.rstrip("."), **({"advice": advice} if advice else {})}
    return {
        "alert": "".join(word.capitalize() for word in rule.name.split("_")), "expr": f"{rule.promql} > {rule.threshold:g}", "for": f"{rule.for_seconds}s",
        "labels": {"severity": rule.severity}, "annotations": annotations,
    }  # fmt: skip


def _said(rule: AlertRule) -> str:
    """The message, with the value in Prometheus's own template language."""

    def filled(match: re.Match[str]) -> str:
        name, form = match[1], match[2] or ""
        if name == "threshold":
            return Sentence().format_field(rule.threshold, form)
        return '{{ $value | humanizePercentage | reReplaceAll "%" " %" }}' if form.endswith("%") else f'{{{{ $value | printf "%{form}" }}}}'

    return _HOLE.sub(filled, rule.message)
