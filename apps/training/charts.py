"""The figures of one training job, and of several beside each other."""

from collections.abc import Sequence

from django.utils.translation import gettext as _

from apps.monitoring.figures import Chart, Line, Number, Table, Threshold, heat_chart, line_chart, thin
from apps.portal.templatetags.portal import NOTHING, decimals, exact, percent, size
from apps.registry.expertise import expertise_charts
from apps.registry.models import VERSION_COLOURS
from apps.training.history import History
from apps.training.models import TrainingJob

TABLE_ROWS = 40
OVERLOADED = 1.5  # the mission's: no expert takes more than this times the mean


def job_charts(job: TrainingJob, history: History, evaluations: Sequence[dict], layer: int = 0) -> dict[str, Chart]:
    """All figures of the job's page by name. `layer`: the one whose experts are shown, 0 for all."""
    final = not job.is_active
    waiting = _("The first steps are on their way.") if job.is_active else _("This job ended before its first step.")

    def steps(name: str, title: str, now: str, hover: str, height: str = "s", **more) -> Chart:
        x, y = thin(history.columns["step"], history.columns[name])
        table = _table(_("Step"), title, history.columns["step"], history.columns[name])
        lines = [Line("", x, y, _colour(job), hover=hover)]
        return line_chart(lines, size=height, now=now, table=table, empty=waiting, final=final, x_title=_("step") if height != "s" else "", **more)

    loss, speed, balance = history.last("loss"), history.last("tokens_per_second"), history.last("expert_load_max_over_mean")
    emptiest = history.last("expert_load_min_over_mean")
    loads = f"{decimals(balance, 2)} ×" if balance else NOTHING
    if balance and emptiest is not None:
        loads += " · " + _("emptiest %(n)s ×") % {"n": decimals(emptiest, 2)}
    charts = {
        "loss": steps("loss", _("Loss"), decimals(loss, 3), "%{y:.3f}", "m"),
        "tokens_per_second": steps("tokens_per_second", _("Tokens/s"), decimals(speed, 0), "%{y:,.0f}", "m"),
        "grad_norm": steps("grad_norm", _("Gradient norm"), decimals(history.last("grad_norm"), 2), "%{y:.2f}"),
        "lr": steps("lr", _("Learning rate"), _small(history.last("lr")), "%{y:.2e}", tick_format="~e"),
        "loss_scale": _loss_scale(job, history, final, waiting),
        "balance": steps(
            "expert_load_max_over_mean", _("Fullest expert, times the mean"), loads, "%{y:.2f} ×",
            threshold=Threshold(OVERLOADED, f"{OVERLOADED} ×"),
        ),
        "load": _expert_load(history, final, waiting),
        "memory": _if_told(history, "memory_bytes", final, waiting)
        or steps("memory_bytes", _("Memory of the first process"), size(history.last("memory_bytes")), "%{y:.3s}B", tick_format="~s"),
        "mfu": _if_told(history, "mfu", final, waiting)
        or steps("mfu", _("MFU"), percent(history.last("mfu"), 1), "%{y:.1%}", tick_format=".0%"),
        "bleu": _evaluated(job, evaluations, "bleu", _("BLEU"), 1, final),
        "held_out_loss": _evaluated(job, evaluations, "loss", _("Held-out loss"), 3, final),
    }  # fmt: skip
    return charts | expertise_charts(job.result, layer)


def _if_told(history: History, name: str, final: bool, waiting: str) -> Chart | None:
    """A word in place of a figure that the run does not tell: an older one, or one that has only begun."""
    if history.has(name):
        return None
    return Chart(empty=_("This run did not tell it.") if history else waiting, final=final)


def _evaluated(job: TrainingJob, evaluations: Sequence[dict], name: str, title: str, places: int, final: bool) -> Chart:
    """Answers to held-out questions while it learns: a glance at a few, which its gate's evaluation will not equal."""
    told = [each for each in evaluations if each.get(name) is not None]
    if not told:
        waiting = _("It has not answered held-out questions yet.") if job.is_active else _("It was not evaluated while it learnt.")
        return Chart(empty=waiting, final=final)
    x, y = [each["step"] for each in told], [each[name] for each in told]
    hover = _("%%{y:.%(places)sf}, of few questions") % {"places": places}
    line = Line("", x, y, _colour(job), hover=hover)
    return line_chart([line], size="s", now=decimals(y[-1], places), table=_table(_("Step"), title, x, y), empty="", final=final)


def _loss_scale(job: TrainingJob, history: History, final: bool, waiting: str) -> Chart:
    if history and not history.has("loss_scale"):
        return Chart(empty=_("%(precision)s needs no loss scaling.") % {"precision": job.get_precision_display()}, final=final)
    x, y = thin(history.columns["step"], history.columns["loss_scale"])
    skipped = history.last("skipped_steps") or 0
    now = f"{decimals(history.last('loss_scale'), 0)}" + (f" · {_('%(n)s skipped') % {'n': exact(skipped)}}" if skipped else "")
    table = _table(_("Step"), _("Loss scale"), history.columns["step"], history.columns["loss_scale"])
    # Dots where steps were skipped since the last event.
    counts = history.columns["skipped_steps"]
    jumped = [i for i in range(1, len(counts)) if (counts[i] or 0) > (counts[i - 1] or 0)]
    chart = line_chart([Line("", x, y, hover="%{y:,}", colour=_colour(job))], size="s", now=now, table=table, empty=waiting, final=final)
    if jumped and chart.data:
        chart.data.append({
            "type": "scatter", "mode": "markers", "x": [history.columns["step"][i] for i in jumped], "y": [history.columns["loss_scale"][i] for i in jumped],
            "marker": {"color": "var(--bad)", "size": 6}, "hovertemplate": _("overflow, step skipped") + "<extra></extra>",
        })  # fmt: skip
    return chart


def _expert_load(history: History, final: bool, waiting: str) -> Chart:
    load = history.expert_load
    if not load:
        return Chart(empty=_("A dense model has no experts.") if history else waiting, final=final)
    # Each layer's loads over their mean: 1 is what every expert should have.
    relative = [[value * len(row) / (sum(row) or 1.0) for value in row] for row in load]
    experts, layers = [str(i + 1) for i in range(len(load[0]))], [_("layer %(n)s") % {"n": i + 1} for i in range(len(load))]
    table = Table([_("Layer"), *experts], [[layer, *(decimals(v, 2) for v in row)] for layer, row in zip(layers, relative, strict=True)])
    hover = _("%%{y}, expert %%{x}: %%{z:.2f} × the mean") % {}
    now = _("step %(n)s") % {"n": exact(history.last("step"))}
    return heat_chart(relative, x=experts, y=layers, hover=hover, low=0.0, high=2.0, now=now, table=table, final=final)


def compare_chart(jobs: Sequence[TrainingJob], histories: Sequence[History], *, column: str, over: str) -> Chart:
    """One line a run, in its version's colour, or in one that is free; runs whose versions share a colour differ by their dashes."""
    lines, used = [], {}
    free = [c for c in map(_token, range(VERSION_COLOURS)) if c not in {_colour(job) for job in jobs if hasattr(job, "model_version")}]
    for job, steps in zip(jobs, histories, strict=True):
        colour = _colour(job) if hasattr(job, "model_version") or not free else free.pop(0)
        used[colour] = used.get(colour, -1) + 1
        x, y = thin(steps.columns[over], steps.columns[column])
        lines.append(Line(name_of(job), x, y, colour, dash=("solid", "dot", "dash", "dashdot")[used[colour] % 4]))
    rows = [[name_of(job), exact(steps.last("step")), decimals(steps.last(column), 3)] for job, steps in zip(jobs, histories, strict=True)]
    table = Table([_("Run"), _("Steps"), _("Last value")], rows)
    title = _("step") if over == "step" else _("seconds")
    return line_chart(
        lines, size="l", zero=column != "loss", x_title=title, table=table, empty=_("None of these runs has made a step yet."),
        final=not any(job.is_active for job in jobs),
    )  # fmt: skip


def name_of(job: TrainingJob) -> str:
    """The version it made, else the end of its id."""
    version = getattr(job, "model_version", None)
    return version.name if version else f"…{job.pk[-5:]}"


def _colour(job: TrainingJob) -> str:
    version = getattr(job, "model_version", None)
    number = version.colour if version else int.from_bytes(job.pk[-2:].encode()) % VERSION_COLOURS
    return _token(number)


def _token(number: int) -> str:
    return f"var(--v-c{number})"


def _table(x_title: str, y_title: str, x: Sequence[Number], y: Sequence[Number]) -> Table:
    stride = max(1, -(-len(x) // TABLE_ROWS))
    chosen = sorted({*range(0, len(x), stride), *([len(x) - 1] if x else [])})
    return Table([x_title, y_title], [[exact(x[i]), NOTHING if y[i] is None else f"{y[i]:.4g}"] for i in chosen])


def _small(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
