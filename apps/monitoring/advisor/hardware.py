"""Which hardware, how many, at what memory, speed and cost: `advise`. Every figure comes with the formula that gave it."""

import math
from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.accounts.problems import Problem
from apps.monitoring.advisor import memory
from apps.monitoring.advisor.devices import DEVICES, PRICE_NOTE, Device, this_machine
from apps.monitoring.advisor.memory import Part, Recipe, recipe_of
from apps.monitoring.advisor.mission import MissionCase, mission_case
from apps.monitoring.advisor.shapes import Shape
from apps.portal.retelling import retold

PURPOSES = ("train", "serve")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
PRECISION_CHOICES = [(name, name.upper()) for name in PRECISIONS]
MAX_GPUS = 100_000
# Shares of the peak that well-tuned programs reach; assumptions, to be replaced by a measurement of yours.
TRAINING_EFFICIENCY = 0.4
DECODING_FLOPS_EFFICIENCY = 0.5
DECODING_BANDWIDTH_EFFICIENCY = 0.6
LAYER_SECONDS = 100e-6  # a layer's kernels are launched one by one: no step is shorter, however small the model
HEADROOM = 0.7  # load a replica to this share, so that a burst does not reach the P99
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS_A_PARAMETER = 20  # Chinchilla (Hoffmann et al. 2022), by the active parameters


@dataclass(frozen=True)
class Stage:
    """One ZeRO stage: memory of one rank, and of all together."""

    stage: int
    bytes_per_rank: float
    bytes_in_all: float
    formula: str


@dataclass(frozen=True)
class DeviceAdvice:
    device: Device
    possible: bool  # at all, with any number of it
    fits: bool  # with the number that was asked for
    count: int | None  # how many it takes
    bytes_per_rank: float
    tokens_per_second: float | None  # of all together
    hours: float | None  # of the training
    cost_per_hour: float | None
    cost: float | None  # of the training; of a month's serving
    batch: int | None  # sequences that share a step while serving
    p99_ms: float | None  # estimated, of one answer, while serving
    why: str
    price_note: str = PRICE_NOTE


@dataclass(frozen=True)
class HardwareAdvice:
    purpose: str
    shape: Shape
    precision: str
    gpus: int
    zero_stage: int
    batch: int
    sequence: int
    qps: float | None
    p99_limit_ms: float | None
    tokens: float | None
    recipe: Recipe | None
    parts: list[Part]
    bytes_per_rank: float
    stages: list[Stage]
    devices: list[DeviceAdvice]
    recommended: str | None
    verdict: str
    formulas: dict[str, str]
    assumptions: list[str]
    mission: MissionCase


def advise(
    *, shape: Shape, purpose: str = "train", gpus: int = 1, zero_stage: int = 0, precision: str | None = None, batch: int = 8,
    sequence: int | None = None, qps: float = 10.0, p99_ms: float = 500.0, answer_tokens: int = 64, tokens: float | None = None, recipe: str = "paper",
) -> HardwareAdvice:  # fmt: skip
    """`batch` and `sequence` are those of one rank's forward pass; `tokens` is how many the training reads. Raises Problem at a bad argument."""
    precision = precision or ("bf16" if purpose == "train" else "int8")
    sequence = sequence or shape.max_seq_len
    _check(purpose, gpus, zero_stage, precision, batch, sequence, qps, p99_ms, answer_tokens, tokens, recipe)
    if purpose == "train":
        return _training(shape, gpus, zero_stage, precision, batch, sequence, tokens or float(TOKENS_A_PARAMETER * shape.active_parameters), recipe)
    return _serving(shape, gpus, precision, sequence, qps, p99_ms, answer_tokens)


def _check(purpose, gpus, zero_stage, precision, batch, sequence, qps, p99_ms, answer_tokens, tokens, recipe) -> None:
    if purpose not in PURPOSES:
        raise Problem(_("The purpose is one of %(names)s.") % {"names": ", ".join(PURPOSES)}, field="purpose")
    if precision not in PRECISIONS or (purpose == "train" and precision == "int8"):
        raise Problem(_("The precision is fp32, bf16 or fp16; for serving also int8."), field="precision")
    if recipe not in memory.RECIPES:
        raise Problem(_("The recipe is one of %(names)s.") % {"names": ", ".join(memory.RECIPES)}, field="recipe")
    bounds = {
        "gpus": (gpus, 1, MAX_GPUS), "zero_stage": (zero_stage, 0, 3), "batch": (batch, 1, 1_000_000), "sequence": (sequence, 1, 10_000_000),
        "qps": (qps, 1e-6, 1e9), "p99_ms": (p99_ms, 1e-3, 1e9), "answer_tokens": (answer_tokens, 1, 1_000_000), "tokens": (tokens or 1, 1, 1e18),
    }  # fmt: skip
    for field, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise Problem(
                _("%(field)s must be between %(low)s and %(high)s.") % {"field": field, "low": f"{low:g}", "high": f"{high:g}"}, field=field
            )


# -- training


def _training(shape: Shape, gpus: int, stage: int, precision: str, batch: int, sequence: int, tokens: float, recipe_name: str) -> HardwareAdvice:
    recipe = recipe_of(recipe_name, precision)

    def parts(stage: int, n: int, gpu: bool = True) -> list[Part]:
        return memory.training_parts(shape, recipe=recipe, stage=stage, gpus=n, batch=batch, sequence=sequence, precision=precision, gpu=gpu)

    own = parts(stage, gpus)
    stages = []
    for number in range(4):
        rank = memory.total(parts(number, gpus))
        formula = " + ".join(part.formula for part in parts(number, gpus)[:3])
        stages.append(Stage(number, rank, rank * gpus, formula))
    devices = [
        _train_on(device, shape, precision, gpus, tokens, lambda n, d=device: memory.total(parts(stage, n, d.kind == "gpu"))) for device in _all()
    ]
    best = _cheapest(devices)
    return HardwareAdvice(
        "train", shape, precision, gpus, stage, batch, sequence, None, None, tokens, recipe, own, memory.total(own), stages, devices,
        best.device.name if best else None, _training_verdict(best, stage), _training_formulas(), _assumptions(shape, training=True), mission_case(shape),
    )  # fmt: skip


def _train_on(device: Device, shape: Shape, precision: str, gpus: int, tokens: float, rank_bytes) -> DeviceAdvice:
    if not device.supports(precision):
        return _impossible(device, rank_bytes(gpus), _no_precision(device, precision))
    count = _fewest(gpus, device.price_per_hour is not None, lambda n: rank_bytes(n) <= device.memory_bytes)
    if count is None:
        return _impossible(
            device,
            rank_bytes(gpus),
            _("It cannot hold %(size)s, in any number of it: raise the ZeRO stage, or lower the batch or the sequence.")
            % {"size": _gb(rank_bytes(gpus))},
        )
    rate = count * device.flops[precision] * TRAINING_EFFICIENCY / (6 * shape.active_parameters)
    hours = tokens / rate / 3600
    hourly = device.price_per_hour * count if device.price_per_hour is not None else None
    fits = count == gpus
    if fits:
        why = _("fits")
    else:
        sizes = {"gpus": gpus, "size": _gb(rank_bytes(gpus)), "memory": _gb(device.memory_bytes), "count": count}
        why = _("%(gpus)s would hold %(size)s each, of %(memory)s; %(count)s are needed") % sizes
    return DeviceAdvice(
        device, True, fits, count, rank_bytes(count), rate, hours, hourly, hourly * hours if hourly is not None else None, None, None, why
    )


def _training_verdict(best: DeviceAdvice | None, stage: int) -> str:
    if best is None:
        return _("At ZeRO stage %(stage)s no device in the table holds one rank. Raise the stage, or lower the batch or the sequence.") % {
            "stage": stage
        }
    said = {
        "count": best.count, "name": retold(best.device.name), "size": _gb(best.bytes_per_rank), "memory": _gb(best.device.memory_bytes),
        "time": _hours(best.hours),
    }  # fmt: skip
    if best.cost is None:
        return _("%(count)s × %(name)s: %(size)s of %(memory)s each, about %(time)s.") % said
    cost = {"cost": f"${max(best.cost, 0.01):,.2f}", "price_note": PRICE_NOTE}
    return _("%(count)s × %(name)s: %(size)s of %(memory)s each, about %(time)s and %(cost)s (%(price_note)s).") % {**said, **cost}


# -- serving


def _serving(shape: Shape, gpus: int, precision: str, sequence: int, qps: float, p99_ms: float, answer_tokens: int) -> HardwareAdvice:
    devices = [_serve_on(device, shape, gpus, precision, sequence, qps, p99_ms, answer_tokens) for device in _all()]
    best = _cheapest(devices)
    batch = best.batch if best and best.batch else 1
    parts = memory.serving_parts(shape, batch=batch, sequence=sequence, precision=precision, gpus=gpus)
    if best is None:
        verdict = _(
            "No device in the table gives an answer of %(tokens)s tokens within %(p99_ms)s ms: ask for a smaller model, INT8 or fewer tokens."
        ) % {"tokens": answer_tokens, "p99_ms": f"{p99_ms:g}"}
    else:
        said = {
            "count": best.count, "name": retold(best.device.name), "qps": f"{qps:g}", "tokens": answer_tokens, "batch": batch,
            "p99_ms": f"{best.p99_ms:.0f}", "load": f"{HEADROOM:.0%}",
        }  # fmt: skip
        verdict = (
            _(
                "%(count)s × %(name)s for %(qps)s answers a second of %(tokens)s tokens: up to %(batch)s share a step, about "
                "%(p99_ms)s ms each, at %(load)s load."
            )
            % said
        )
    return HardwareAdvice(
        "serve", shape, precision, gpus, 0, batch, sequence, qps, p99_ms, None, None, parts, memory.total(parts), [], devices,
        best.device.name if best else None, verdict, _serving_formulas(), _assumptions(shape, training=False), mission_case(shape),
    )  # fmt: skip


def _serve_on(device: Device, shape: Shape, gpus: int, precision: str, sequence: int, qps: float, p99_ms: float, answer_tokens: int) -> DeviceAdvice:
    def rank(batch: int, n: int = gpus) -> float:
        return memory.total(memory.serving_parts(shape, batch=batch, sequence=sequence, precision=precision, gpus=n, gpu=device.kind == "gpu"))

    if not device.supports(precision):
        return _impossible(device, rank(1), _no_precision(device, precision))
    shards = _fewest(gpus, device.price_per_hour is not None, lambda n: rank(1, n) <= device.memory_bytes)
    if shards is None:
        return _impossible(device, rank(1), _("It cannot hold %(size)s, in any number of it.") % {"size": _gb(rank(1))})
    usable = [
        b
        for b in BATCHES
        if rank(b, shards) <= device.memory_bytes and _answer_ms(device, shape, precision, b, sequence, shards, answer_tokens) <= p99_ms
    ]
    if not usable:
        alone = _answer_ms(device, shape, precision, 1, sequence, shards, answer_tokens)
        return _impossible(
            device,
            rank(1, shards),
            _("One answer alone takes about %(alone)s ms there; %(p99_ms)s ms are asked for.") % {"alone": f"{alone:,.0f}", "p99_ms": f"{p99_ms:g}"},
        )
    batch = usable[-1]
    latency = _answer_ms(device, shape, precision, batch, sequence, shards, answer_tokens)
    answers_a_second = batch / (latency / 1000)
    replicas = max(1, math.ceil(qps / (answers_a_second * HEADROOM)))
    count = replicas * shards
    hourly = device.price_per_hour * count if device.price_per_hour is not None else None
    said = {"replicas": replicas, "shards": shards, "answers": f"{answers_a_second * HEADROOM:,.1f}", "load": f"{HEADROOM:.0%}"}
    if shards > 1:
        why = _("%(replicas)s replicas of %(shards)s each, %(answers)s answers a second each at %(load)s load") % said
    else:
        why = _("%(replicas)s replicas, %(answers)s answers a second each at %(load)s load") % said
    month = hourly * 730 if hourly is not None else None
    return DeviceAdvice(
        device,
        True,
        shards == gpus and (device.price_per_hour is not None or count == 1),
        count,
        rank(batch, shards),
        answers_a_second * answer_tokens * replicas,
        None,
        hourly,
        month,
        batch,
        latency,
        why,
    )


def step_seconds(device: Device, shape: Shape, precision: str, batch: int, sequence: int, shards: int = 1) -> float:
    """One decoding step: reading the weights that the batch touches and its cache, or computing, whichever is longer."""
    each = memory.BYTES[precision]
    touched = 1 - (1 - shape.top_k / shape.n_experts) ** batch if shape.n_experts else 1.0
    weights = each * (shape.total_parameters - shape.expert_parameters * (1 - touched))
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * max(2, each) * batch * sequence / 2  # half full on average
    reading = (weights + cache) / shards / (device.bandwidth * DECODING_BANDWIDTH_EFFICIENCY)
    computing = 2 * shape.active_parameters * batch / shards / (device.flops[precision] * DECODING_FLOPS_EFFICIENCY)
    return max(reading, computing, shape.n_layers * LAYER_SECONDS)


def _answer_ms(device: Device, shape: Shape, precision: str, batch: int, sequence: int, shards: int, answer_tokens: int) -> float:
    return 1000 * answer_tokens * step_seconds(device, shape, precision, batch, sequence, shards)


# -- both


def _all() -> list[Device]:
    return [*DEVICES, this_machine()]


def _fewest(least: int, rentable: bool, fits) -> int | None:
    """The smallest number from `least` on, doubling, that fits; of this machine there is one."""
    n = least
    while n <= (MAX_GPUS if rentable else 1):
        if fits(n):
            return n
        n *= 2
    return None


def _no_precision(device: Device, precision: str) -> str:
    note = _(device.note) if device.note else ""
    return (_("It has no %(precision)s.") % {"precision": precision.upper()} + f" {note}").strip()


def _impossible(device: Device, rank_bytes: float, why: str) -> DeviceAdvice:
    return DeviceAdvice(device, False, False, None, rank_bytes, None, None, None, None, None, None, why)


def _cheapest(devices: list[DeviceAdvice]) -> DeviceAdvice | None:
    """Of those that fit as asked, else of those that do in larger numbers. What has no price is taken only where nothing else is possible."""
    possible = [d for d in devices if d.possible]
    return min(possible, key=lambda d: (not d.fits, d.cost is None, d.cost or 0.0), default=None)


def _gb(size: float) -> str:
    return f"{size / 1e12:,.2f} TB" if size >= 1e12 else f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _hours(hours: float | None) -> str:
    if hours is None:
        return "–"
    return (
        _("%(n)s days") % {"n": f"{hours / 24:,.1f}"}
        if hours >= 48
        else _("%(n)s hours") % {"n": f"{hours:,.1f}"}
        if hours >= 1
        else _("%(n)s minutes") % {"n": f"{hours * 60:,.1f}"}
        if hours * 60 >= 1
        else _("under a minute")
    )


def _assumptions(shape: Shape, *, training: bool) -> list[str]:
    share = (
        _("training reaches %(share)s of the device's peak; communication is hidden behind it") % {"share": f"{TRAINING_EFFICIENCY:.0%}"}
        if training
        else _("decoding reaches %(bandwidth)s of the bandwidth and %(peak)s of the peak; the prompt is short, and a layer takes 0.1 ms at least")
        % {"bandwidth": f"{DECODING_BANDWIDTH_EFFICIENCY:.0%}", "peak": f"{DECODING_FLOPS_EFFICIENCY:.0%}"}
    )
    out = [share, _("prices: %(price_note)s") % {"price_note": PRICE_NOTE}]
    if shape.estimated:
        out.append(_("the layers were estimated from the number of parameters, after the nearest preset"))
    return out


def _training_formulas() -> dict[str, str]:
    return {
        gettext_noop("memory"): _("weights + gradients + optimizer, each divided by N where the stage shards it, + activations + logits"),
        gettext_noop("tokens_per_second"): _("devices · peak FLOP/s · %(share)s / (6 · active parameters)") % {"share": TRAINING_EFFICIENCY},
        gettext_noop("hours"): _("tokens / tokens per second / 3600"),
        gettext_noop("tokens"): _("unless given: %(n)s per active parameter (Hoffmann et al. 2022)") % {"n": TOKENS_A_PARAMETER},
    }


def _serving_formulas() -> dict[str, str]:
    shares = {"bandwidth": DECODING_BANDWIDTH_EFFICIENCY, "peak": DECODING_FLOPS_EFFICIENCY}
    return {
        gettext_noop("step"): _("max(bytes read / (bandwidth · %(bandwidth)s), 2 · active · batch / (peak · %(peak)s), layers · 0.1 ms)") % shares,
        gettext_noop("bytes read"): _("weights outside the experts + experts · (1 − (1 − k/E)^batch) + half of the key-value cache"),
        gettext_noop("p99_ms"): _("answer tokens · step: the largest batch whose answers stay within the limit is taken"),
        gettext_noop("count"): _("⌈QPS / (answers a second of one replica · %(load)s)⌉ · devices of one replica") % {"load": HEADROOM},
    }
