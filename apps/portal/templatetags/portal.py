"""Figures, times and the small parts that every page shares."""

from datetime import datetime

from django import template
from django.templatetags.static import static
from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps.portal.retelling import retold

register = template.Library()
register.filter("retold", retold)

NOTHING = "–"
DOTS = {
    "running": "dot-run", "succeeded": "dot-ok", "live": "dot-ok", "failed": "dot-bad", "error": "dot-bad", "firing": "dot-bad",
    "pending": "dot-warn", "candidate": "dot-warn", "resolved": "dot-ok", "ok": "dot-ok", "done": "dot-ok", "passed": "dot-ok", "refused": "dot-bad",
    "stopped": "", "draft": "", "queued": "", "cancelled": "", "retired": "", "waiting": "",
}  # fmt: skip


# -- figures


def _number(value: float, digits: int) -> str:
    return formats.number_format(round(value, digits), digits, force_grouping=True)


@register.filter
def short(value) -> str:
    """12.4 k, 3.1 M; whole below ten thousand."""
    if value is None or value == "":
        return NOTHING
    number = float(value)
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            size = number / (1e3 if unit == "k" else limit)
            return f"{_number(size, 1 if abs(size) < 100 else 0)} {unit}"
    return _number(number, 0 if number == int(number) else 1)


@register.filter
def exact(value) -> str:
    """The whole figure with grouping, for hover."""
    return NOTHING if value is None or value == "" else formats.number_format(value, force_grouping=True)


@register.filter
def size(value) -> str:
    """Bytes as 3.1 MB."""
    if value is None or value == "":
        return NOTHING
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{_number(number, 1 if unit != 'B' and number < 100 else 0)} {unit}"
        number /= 1000
    return f"{_number(number, 1)} TB"


@register.filter
def decimals(value, digits=1) -> str:
    return NOTHING if value is None or value == "" else _number(float(value), int(digits))


@register.filter
def percent(value, digits=0) -> str:
    """A share of 0 to 1 as a percentage."""
    return NOTHING if value is None or value == "" else f"{_number(float(value) * 100, int(digits))} %"


@register.filter
def signed(value, digits=1) -> str:
    return NOTHING if value is None or value == "" else f"{'+' if float(value) > 0 else ''}{_number(float(value), int(digits))}".replace("-", "−")


@register.filter
def ms(value) -> str:
    if value is None or value == "":
        return NOTHING
    number = float(value)
    return f"{_number(number, 1 if number < 10 else 0)} ms" if number < 10_000 else f"{_number(number / 1000, 1)} s"


@register.filter
def duration(seconds) -> str:
    """48 s, 2 min 15 s, 1 h 5 min."""
    if seconds is None or seconds == "":
        return NOTHING
    total = max(0, round(float(seconds)))
    if total < 60:
        return _("%(s)s s") % {"s": total}
    if total < 3600:
        return _("%(m)s min %(s)s s") % {"m": total // 60, "s": total % 60}
    return _("%(h)s h %(m)s min") % {"h": total // 3600, "m": total % 3600 // 60}


# -- times


@register.simple_tag
def ago(moment: datetime | None) -> str:
    """Relative, with the exact time on hover; the browser keeps it true."""
    if moment is None:
        return NOTHING
    seconds = (timezone.now() - moment).total_seconds()
    text = _("just now") if seconds < 3 else _relative(seconds)
    return format_html('<time datetime="{}" title="{}" data-ago>{}</time>', moment.isoformat(), formats.date_format(moment, "DATETIME_FORMAT"), text)


def _relative(seconds: float) -> str:
    for length, one in (
        (86400, ngettext("%(n)s day ago", "%(n)s days ago", int(seconds // 86400))),
        (3600, _("%(n)s h ago")),
        (60, _("%(n)s min ago")),
    ):
        if seconds >= length:
            return one % {"n": int(seconds // length)}
    return _("%(n)s s ago") % {"n": int(seconds)}


@register.simple_tag
def clock(moment: datetime | None) -> str:
    if moment is None:
        return NOTHING
    return format_html('<time datetime="{}" data-clock>{}</time>', moment.isoformat(), formats.date_format(timezone.localtime(moment), "H:i"))


# -- parts


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    return format_html('<svg class="icon {}" aria-hidden="true"><use href="{}#{}"></use></svg>', extra, static("icons.svg"), name)


@register.simple_tag
def version(row, link: bool = True) -> str:
    """A model version's name in its colour, everywhere the same."""
    if row is None:
        return NOTHING
    inside = format_html('<span class="version v-c{}">{}</span>', row.colour, row.name)
    if not link:
        return inside
    return format_html('<a class="version v-c{}" href="/models/{}/">{}</a>', row.colour, row.pk, row.name)


@register.simple_tag
def state(value: str, label: str = "") -> SafeString:
    """A filled dot and a word."""
    return format_html('<span class="state"><span class="dot {}"></span>{}</span>', DOTS.get(value, ""), label or _(value))


@register.simple_tag(takes_context=True)
def query(context, **changes) -> str:
    """The page's own query string with some values changed; an empty one is taken out."""
    values = context["request"].GET.copy()
    for name, value in changes.items():
        if value in (None, ""):
            values.pop(name, None)
        else:
            values[name] = value
    return f"?{values.urlencode()}" if values else "?"


@register.filter
def get(mapping, key):
    return mapping.get(key) if hasattr(mapping, "get") else None


@register.filter
def split(text: str) -> list[str]:
    return text.split()


@register.simple_tag
def sheet_url(name: str) -> str:
    return static(f"css/{name}.css")


@register.filter
def unlocalized(value) -> str:
    """A number as HTML attributes want it, whatever the language."""
    return "" if value is None else f"{float(value):.4f}"
