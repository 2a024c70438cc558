"""Hardware to serve on: how many sequences share a step, how many replicas a rate of questions needs for its P99, and the cost."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.monitoring.advisor.answer import DeviceAdvice, HardwareAdvice, all_devices, cheapest, fewest, impossible, no_precision
from apps.monitoring.advisor.devices import PRICE_NOTE, Device
from apps.monitoring.advisor.memory import explained, size
from apps.monitoring.advisor.mission import mission_case
from apps.portal.retelling import retold
from apps.portal.templatetags.portal import percent
from workers.planning import BYTES, Shape, fewest_groups, serving_parts, total, waiting_seconds

# Shares of the peak that well-tuned programs reach; assumptions, to be replaced by a measurement of yours.
FLOPS_EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.6
LAYER_SECONDS = 100e-6  # a layer's kernels are launched one by one: no step is shorter, however small the model
HEADROOM = 0.7  # load a replica to this share at most, so that a burst does not reach the P99
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HOURS_A_MONTH = 730


def serving_advice(shape: Shape, gpus: int, precision: str, sequence: int, qps: float, p99_ms: float, answer_tokens: int) -> HardwareAdvice:
    devices = [_serve_on(device, shape, gpus, precision, sequence, qps, p99_ms, answer_tokens) for device in all_devices()]
    best = cheapest(devices)
    batch = best.batch if best and best.batch else 1
    parts = serving_parts(shape, batch=batch, sequence=sequence, precision=precision, gpus=gpus)
    if best is None:
        verdict = _(
            "No device in the table gives an answer of %(tokens)s tokens within %(p99_ms)s ms: ask for a smaller model, INT8 or fewer tokens."
        ) % {"tokens": answer_tokens, "p99_ms": f"{p99_ms:g}"}
    else:
        said = {
            "count": best.count, "name": retold(best.device.name), "qps": f"{qps:g}", "tokens": answer_tokens, "batch": batch,
            "p99_ms": f"{best.p99_ms:.0f}", "load": percent(HEADROOM),
        }  # fmt: skip
        verdict = (
            _(
                "%(count)s × %(name)s for %(qps)s answers a second of %(tokens)s tokens: up to %(batch)s share a step, about "
                "%(p99_ms)s ms each, at most at %(load)s load."
            )
            % said
        )
    return HardwareAdvice(
        "serve", shape, precision, gpus, 0, batch, sequence, qps, p99_ms, None, None, None, None, explained(parts), total(parts), [], devices,
        best.device.name if best else None, verdict, _formulas(), _assumptions(shape), mission_case(shape),
    )  # fmt: skip


def _serve_on(device: Device, shape: Shape, gpus: int, precision: str, sequence: int, qps: float, p99_ms: float, answer_tokens: int) -> DeviceAdvice:
    def rank(batch: int, n: int = gpus) -> float:
        return total(serving_parts(shape, batch=batch, sequence=sequence, precision=precision, gpus=n, gpu=device.kind == "gpu"))

    if not device.supports(precision):
        return impossible(device, rank(1), no_precision(device, precision))
    rentable = device.price_per_hour is not None
    shards = fewest(gpus, rentable, lambda n: rank(1, n) <= device.memory_bytes)
    if shards is None:
        return impossible(device, rank(1), _("It cannot hold %(size)s, in any number of it.") % {"size": size(rank(1))})

    def answer_seconds(batch: int) -> float:
        return answer_tokens * step_seconds(device, shape, precision, batch, sequence, shards)

    usable = [b for b in BATCHES if rank(b, shards) <= device.memory_bytes and 1000 * answer_seconds(b) < p99_ms]
    if not usable:
        alone = 1000 * answer_seconds(1)
        why = _("An answer of %(tokens)s tokens takes %(ms)s ms, alone.") % {"tokens": answer_tokens, "ms": f"{alone:,.0f}"}
        return impossible(device, rank(1, shards), why)
    replicas, batch = min((_replicas(qps, b, answer_seconds(b), p99_ms / 1000), b) for b in usable)
    seconds, load = answer_seconds(batch), qps * answer_seconds(batch)
    p99 = 1000 * (seconds + waiting_seconds(replicas * batch, load, seconds))
    count = replicas * shards
    if not rentable and count > 1:
        return impossible(device, rank(batch, shards), _("It would take %(n)s of this machine.") % {"n": f"{count:,}"})
    hourly = device.price_per_hour * count if device.price_per_hour is not None else None
    said = {"replicas": f"{replicas:,}", "shards": shards, "load": percent(load / (replicas * batch))}
    if shards > 1:
        why = _("%(replicas)s replicas of %(shards)s each, at %(load)s load") % said
    else:
        why = _("%(replicas)s replicas, at %(load)s load") % said
    formula = f"a = {qps:g}/s · {seconds:.3g} s = {load:.3g}; c = {replicas:,} · {batch}"
    month = hourly * HOURS_A_MONTH if hourly is not None else None
    return DeviceAdvice(
        device,
        True,
        shards == gpus,
        count,
        rank(batch, shards),
        batch * answer_tokens / seconds * replicas,
        None,
        hourly,
        month,
        batch,
        p99,
        why,
        formula,
    )


def _replicas(qps: float, batch: int, seconds: float, limit_seconds: float) -> int:
    """The fewest of `batch` slots each that are loaded to HEADROOM at most and keep the slowest hundredth within the limit."""
    load = qps * seconds
    return max(fewest_groups(load / HEADROOM, batch, seconds, float("inf")), fewest_groups(load, batch, seconds, limit_seconds - seconds))


def step_seconds(device: Device, shape: Shape, precision: str, batch: int, sequence: int, shards: int = 1) -> float:
    """One decoding step: reading the weights that the batch touches and its cache, or computing, whichever is longer."""
    each = BYTES[precision]
    touched = 1 - (1 - shape.top_k / shape.n_experts) ** batch if shape.n_experts else 1.0
    weights = each * (shape.total_parameters - shape.expert_parameters * (1 - touched))
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * max(2, each) * batch * sequence / 2  # half full on average
    reading = (weights + cache) / shards / (device.bandwidth * BANDWIDTH_EFFICIENCY)
    computing = 2 * shape.active_parameters * batch / shards / (device.flops[precision] * FLOPS_EFFICIENCY)
    return max(reading, computing, shape.n_layers * LAYER_SECONDS)


def _formulas() -> dict[str, str]:
    shares = {"bandwidth": BANDWIDTH_EFFICIENCY, "peak": FLOPS_EFFICIENCY}
    return {
        gettext_noop("step"): _("max(bytes read / (bandwidth · %(bandwidth)s), 2 · active · batch / (peak · %(peak)s), layers · 0.1 ms)") % shares,
        gettext_noop("bytes read"): _("weights outside the experts + experts · (1 − (1 − k/E)^batch) + half of the key-value cache"),
        gettext_noop("p99_ms"): _("S + S · ln(C / 0.01) / (c − a), S = answer tokens · step, a = QPS · S, C: Erlang's chance to wait (M/M/c)"),
        gettext_noop("count"): _("the fewest replicas of `batch` slots, c = replicas · batch, with P99 in the limit and a ≤ %(load)s c")
        % {"load": HEADROOM},
    }


def _assumptions(shape: Shape) -> list[str]:
    out = [
        _("decoding reaches %(bandwidth)s of the bandwidth and %(peak)s of the peak; the prompt is short, and a layer takes 0.1 ms at least")
        % {"bandwidth": percent(BANDWIDTH_EFFICIENCY), "peak": percent(FLOPS_EFFICIENCY)},
        _("questions come at random (Poisson), and any free slot takes the next"),
        _("prices: %(price_note)s") % {"price_note": PRICE_NOTE},
    ]
    if shape.estimated:
        out.append(_("the layers were estimated from the number of parameters, after the nearest preset"))
    return out
