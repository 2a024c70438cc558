"""Which experts learnt what: figures of a version's details, and of the training job that made it."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.monitoring.figures import Chart, Table, base_layout, heat_chart
from apps.portal.templatetags.portal import NOTHING, decimals, percent

MODALITIES = (gettext_noop("picture tokens"), gettext_noop("text tokens"))  # as workers.training.specialisation names their columns
MOST_COLUMNS = 48  # of a heat map, experts of all layers beside each other; a deeper model is shown layer by layer


def layers_to_choose(details: Mapping[str, Any]) -> range:
    """The layers with experts, from 1; empty where there is no heat map."""
    return range(1, len(details.get("expert_domain") or []) + 1)


def chosen_layer(details: Mapping[str, Any], asked: str | None) -> int:
    """From 1; 0 for all of them."""
    shares = details.get("expert_domain") or []
    if asked and asked.isdecimal() and int(asked) <= len(shares):
        return int(asked)
    return 0 if sum(map(len, shares)) <= MOST_COLUMNS else 1


def expertise_charts(details: Mapping[str, Any], layer: int) -> dict[str, Chart]:
    """By name; nothing for a model without experts or a dataset without domains."""
    charts = {}
    if shares := details.get("expert_domain"):
        charts["domains"] = expert_domain(details.get("domains", []), shares, layer, modality=(details.get("specialisation") or {}).get("modality"))
    if found := details.get("specialisation"):
        charts["information"] = information(found, details.get("expert_balance") or [])
    return charts


def expert_domain(
    domains: Sequence[str], shares: Sequence[Sequence[Sequence[float]]], layer: int = 0, *, modality: Mapping[str, Any] | None = None
) -> Chart:
    """Which experts each domain's tokens went to. `shares`: layers × experts × domains, as the job's result has them. `layer`: from 1, 0 for all.
    `modality`: the bits that the experts of each layer tell of text or picture, where the model sees pictures."""
    domains = [_(name) if name in MODALITIES else name for name in domains]
    shown = [layer - 1] if layer else range(len(shares))
    columns = [(number, expert) for number in shown for expert in range(len(shares[number]))]
    if not columns or not domains:
        return Chart(empty=_("A dense model has no experts."), final=True)
    matrix = [[shares[layer][expert][number] for layer, expert in columns] for number in range(len(domains))]
    names = [f"{layer + 1}.{expert + 1}" for layer, expert in columns]
    favourites = [
        [domain, *(_favourite(shares[layer], number) for layer in range(len(shares)))] for number, domain in enumerate(domains)
    ]  # a table of a hundred columns would be read by nobody
    table = Table([_("Domain"), *(_layer(number) for number in range(len(shares)))], favourites)
    hover = _("%%{y}: %%{z:.0%%} of its tokens in this layer go to expert %%{x}") % {}
    told = ""
    if modality:
        bits = " / ".join(decimals(modality["layers"][number], 2) for number in shown)
        told = _("text or picture: %(bits)s of %(n)s bits") % {"bits": bits, "n": decimals(modality["entropy"], 2)}
    return heat_chart(
        matrix, x=names, y=domains, hover=hover, low=0.0, high=max(max(row) for row in matrix) or 1.0, size="l", now=told, table=table, final=True
    )


def information(found: Mapping[str, Any], balance: Sequence[Mapping[str, float]]) -> Chart:
    """A bar a layer: the bits that the expert tells of the domain, with a stroke where one shuffle of the domains in twenty still reaches."""
    layers, names = found["layers"], [_layer(number) for number in range(len(found["layers"]))]
    bits, chance = [layer["bits"] for layer in layers], [layer["chance_high"] for layer in layers]
    hover, by_chance = _("%%{x}: %%{y:.3f} bits") % {}, _("by chance: %%{y:.3f} bits") % {}
    data: list[dict[str, Any]] = [
        {"type": "bar", "x": names, "y": bits, "marker": {"color": "var(--accent)"}, "width": 0.5, "hovertemplate": f"{hover}<extra></extra>"},
        {
            "type": "scatter", "mode": "markers", "x": names, "y": chance, "hovertemplate": f"{by_chance}<extra></extra>",
            "marker": {"symbol": "line-ew-open", "size": 28, "color": "var(--ink)", "line": {"width": 2, "color": "var(--ink)"}},
        },
    ]  # fmt: skip
    layout = base_layout(size="s")
    layout["xaxis"] |= {"type": "category", "showspikes": False, "fixedrange": True, "nticks": 0}
    layout["yaxis"] |= {"range": [0, max([*bits, *chance, 0.01]) * 1.15]}
    head = [_("Layer"), _("bits"), _("by chance"), _("share of the domain told"), _("fullest expert"), _("emptiest expert")]
    loads = [(decimals(each["max_over_mean"], 2), decimals(each["min_over_mean"], 2)) for each in balance] or [(NOTHING, NOTHING)] * len(layers)
    rows = [
        [name, decimals(layer["bits"], 3), decimals(layer["chance"], 3), percent(layer["share"], 1), *load]
        for name, layer, load in zip(names, layers, loads, strict=True)
    ]
    now = _("of %(n)s bits") % {"n": decimals(found["domain_entropy"], 2)}
    return Chart(data, layout, now, Table(head, rows), final=True)


def _layer(number: int) -> str:
    return _("layer %(n)s") % {"n": number + 1}


def _favourite(layer: Sequence[Sequence[float]], domain: int) -> str:
    best = max(range(len(layer)), key=lambda expert: layer[expert][domain])
    return _("expert %(n)s, %(share)s") % {"n": best + 1, "share": percent(layer[best][domain])}
