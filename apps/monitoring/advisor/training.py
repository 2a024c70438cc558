"""Hardware to train on: memory of one device part by part, how many hold it and meet a deadline, time and cost."""

from dataclasses import replace

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.monitoring.advisor.answer import (
    MAX_GPUS,
    DeviceAdvice,
    HardwareAdvice,
    Stage,
    all_devices,
    cheapest,
    fewest,
    impossible,
    no_precision,
)  # fmt: skip
from apps.monitoring.advisor.devices import PRICE_NOTE, Device
from apps.monitoring.advisor.memory import explained, size
from apps.monitoring.advisor.mission import mission_case
from apps.portal.retelling import retold
from apps.portal.templatetags.portal import percent
from workers.planning import (
    TRAINING_EFFICIENCY,
    Setting,
    Shape,
    devices_for,
    model_states,
    peak,
    rank_bytes,
    recipe_of,
    tokens_per_second,
    training_flops_per_token,
)  # fmt: skip


def training_advice(
    shape: Shape,
    gpus: int,
    stage: int,
    precision: str,
    batch: int,
    sequence: int,
    tokens: float,
    days: float | None,
    recipe: str,
    checkpointing: bool,
) -> HardwareAdvice:
    setting = Setting(shape, precision, batch, sequence, stage, gpus, recipe=recipe, gpu=True, checkpointing=checkpointing)
    moment, parts = peak(setting)
    stages = []
    for number in range(4):
        each = replace(setting, stage=number)
        formula = " + ".join(part.formula for part in model_states(each))
        stages.append(Stage(number, rank_bytes(each), rank_bytes(each) * gpus, formula))
    devices = [_train_on(device, setting, tokens, days) for device in all_devices()]
    if days:  # the question is what meets the deadline most cheaply
        devices.sort(key=lambda d: (not d.possible, d.cost is None, d.cost or 0.0))
    best = cheapest(devices)
    return HardwareAdvice(
        "train", shape, precision, gpus, stage, batch, sequence, None, None, tokens, days, recipe_of(recipe, precision), moment, explained(parts),
        rank_bytes(setting), stages, devices, best.device.name if best else None, _verdict(best, stage, days), _formulas(shape, sequence, days),
        _assumptions(shape), mission_case(shape),
    )  # fmt: skip


def _train_on(device: Device, asked: Setting, tokens: float, days: float | None) -> DeviceAdvice:
    def bytes_of(n: int) -> float:
        return rank_bytes(replace(asked, ranks=n, gpu=device.kind == "gpu"))

    if not device.supports(asked.precision):
        return impossible(device, bytes_of(asked.ranks), no_precision(device, asked.precision))
    rentable = device.price_per_hour is not None
    one = tokens_per_second(asked.shape, asked.length, device.flops[asked.precision])
    if days:
        least = devices_for(tokens, days, one)
        if least > (MAX_GPUS if rentable else 1):
            why = _("It would take %(count)s of them to be done in %(days)s days.") % {"count": f"{least:,}", "days": f"{days:g}"}
            return impossible(device, bytes_of(asked.ranks), why)
    else:
        least = asked.ranks
    count = fewest(least, rentable, lambda n: bytes_of(n) <= device.memory_bytes)
    if count is None:
        return impossible(
            device,
            bytes_of(least),
            _("It cannot hold %(size)s, in any number of it: raise the ZeRO stage, or lower the batch or the sequence.")
            % {"size": size(bytes_of(least))},
        )
    hours = tokens / (one * count) / 3600
    hourly = device.price_per_hour * count if device.price_per_hour is not None else None
    fits = days is not None or count == asked.ranks
    said = {"gpus": asked.ranks, "size": size(bytes_of(least)), "memory": size(device.memory_bytes), "count": f"{count:,}", "days": f"{days or 0:g}"}
    if count == least:
        why = _("the fewest that are done in %(days)s days") % said if days else _("fits")
    elif days:
        why = _("%(count)s, so that each holds its share of the memory") % said
    else:
        why = _("%(gpus)s would hold %(size)s each, of %(memory)s; %(count)s are needed") % said
    formula = f"⌈{tokens:.3g} / ({one:,.0f}/s · {days:g} · 86,400 s)⌉ = {least:,}" if days else f"{tokens:.3g} / ({count:,} · {one:,.0f}/s)"
    return DeviceAdvice(
        device,
        True,
        fits,
        count,
        bytes_of(count),
        one * count,
        hours,
        hourly,
        hourly * hours if hourly is not None else None,
        None,
        None,
        why,
        formula,
    )


def _verdict(best: DeviceAdvice | None, stage: int, days: float | None) -> str:
    if best is None and days:
        return _("No device in the table is done in %(days)s days at ZeRO stage %(stage)s: give it more days, a higher stage or fewer tokens.") % {
            "days": f"{days:g}", "stage": stage,
        }  # fmt: skip
    if best is None:
        return _("At ZeRO stage %(stage)s no device in the table holds one rank. Raise the stage, or lower the batch or the sequence.") % {
            "stage": stage
        }
    said = {
        "count": best.count, "name": retold(best.device.name), "size": size(best.bytes_per_rank), "memory": size(best.device.memory_bytes),
        "time": _hours(best.hours),
    }  # fmt: skip
    if best.cost is None:
        return _("%(count)s × %(name)s: %(size)s of %(memory)s each, about %(time)s.") % said
    cost = {"cost": f"${max(best.cost, 0.01):,.2f}", "price_note": PRICE_NOTE}
    return _("%(count)s × %(name)s: %(size)s of %(memory)s each, about %(time)s and %(cost)s (%(price_note)s).") % {**said, **cost}


def _hours(hours: float | None) -> str:
    if hours is None:
        return "–"
    if hours >= 48:
        return _("%(n)s days") % {"n": f"{hours / 24:,.1f}"}
    if hours >= 1:
        return _("%(n)s hours") % {"n": f"{hours:,.1f}"}
    return _("%(n)s minutes") % {"n": f"{hours * 60:,.1f}"} if hours * 60 >= 1 else _("under a minute")


def _formulas(shape: Shape, sequence: int, days: float | None) -> dict[str, str]:
    flops = training_flops_per_token(shape, sequence)
    found = {
        gettext_noop("memory"): _("the parts above; Ψ: parameters, N: devices, M = R · T: tokens of a pass, S: of those, the learnt ones"),
        gettext_noop("FLOPs a token"): _("6 · active parameters + 6 · layers · H · h · T = %(flops)s") % {"flops": f"{flops:.3g}"},
        gettext_noop("tokens_per_second"): _("devices · peak FLOP/s · %(share)s / FLOPs a token") % {"share": TRAINING_EFFICIENCY},
        gettext_noop("hours"): _("tokens / tokens per second / 3600"),
        gettext_noop("cost"): _("devices · hours · price of one an hour"),
        gettext_noop("tokens"): _("unless given: %(n)s per active parameter (Hoffmann et al. 2022)") % {"n": 20},
    }
    if days:
        found[gettext_noop("devices")] = _("⌈tokens / (tokens per second of one · days · 86,400)⌉, doubled until each holds its share of the memory")
    return found


def _assumptions(shape: Shape) -> list[str]:
    out = [
        _("training reaches %(share)s of the device's peak; communication is hidden behind it") % {"share": percent(TRAINING_EFFICIENCY)},
        _("prices: %(price_note)s") % {"price_note": PRICE_NOTE},
    ]
    if shape.estimated:
        out.append(_("the layers were estimated from the number of parameters, after the nearest preset"))
    return out
