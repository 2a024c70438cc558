"""The planner's shape of a preset, of a version, or of so many parameters."""

from django.utils.translation import gettext as _

from apps.accounts.problems import Missing, Problem
from apps.registry.models import ModelVersion
from apps.training.selectors import preset, presets
from workers.planning import Shape

MIN_PARAMETERS, MAX_PARAMETERS = 1e4, 1e14


def shape_of_preset(name: str) -> Shape:
    found = preset(name)
    if found is None:
        raise Missing(_("There is no preset %(name)s; see /api/v1/presets/.") % {"name": repr(name)}, field="preset")
    return _from(name, found["total_parameters"], found["active_parameters"], found["configuration"])


def shape_of_version(version: ModelVersion) -> Shape:
    """From the version's configuration; where it is of a kind that we cannot read, estimated from its parameters."""
    config = _plain(version.config)
    if config is None:
        return shape_of_parameters(version.total_parameters, version.active_parameters, name=version.name)
    return _from(version.name, version.total_parameters, version.active_parameters, config)


def shape_of_parameters(total: float, active: float | None = None, name: str = "") -> Shape:
    """The nearest preset, widened or narrowed to so many parameters. Weights scale with the square of the width."""
    if not MIN_PARAMETERS <= total <= MAX_PARAMETERS:
        raise Problem(_("The number of parameters must be between 10 thousand and 100 trillion."), field="parameters")
    nearest = min(presets(), key=lambda p: max(p["total_parameters"] / total, total / p["total_parameters"]))
    base = _from(name, nearest["total_parameters"], nearest["active_parameters"], nearest["configuration"])
    scale = (total / base.total_parameters) ** 0.5
    active = active or total * base.active_parameters / base.total_parameters
    return Shape(
        name or f"{total / 1e9:.3g} B", int(total), int(min(active, total)), base.vocab_size, max(8, round(base.d_model * scale)), base.n_layers,
        base.n_heads, base.n_kv_heads, max(2, round(base.head_dim * scale)), max(8, round(base.d_expert * scale)), base.n_experts, base.top_k,
        base.max_seq_len, estimated=True,
    )  # fmt: skip


def _from(name: str, total: int, active: int, config: dict) -> Shape:
    return Shape(
        name, total, active, config["vocab_size"], config["d_model"], config["n_layers"], config["n_heads"], config["n_kv_heads"], config["head_dim"],
        config["d_expert"] or config.get("d_dense", 0), config["n_experts"], config["top_k"], config["max_seq_len"],
    )  # fmt: skip


_HUGGING_FACE = {
    "vocab_size": ("vocab_size",), "d_model": ("hidden_size",), "n_layers": ("num_hidden_layers",), "n_heads": ("num_attention_heads",),
    "n_kv_heads": ("num_key_value_heads", "num_attention_heads"), "head_dim": ("head_dim",), "d_expert": ("moe_intermediate_size", "intermediate_size"),
    "n_experts": ("num_local_experts", "n_routed_experts", "num_experts"), "top_k": ("num_experts_per_tok",), "max_seq_len": ("max_position_embeddings",),
}  # fmt: skip


def _plain(config: dict) -> dict | None:
    """Our own configuration's names, also from a Hugging Face `config.json`."""
    if "d_model" in config and "d_expert" in config:
        return config
    if "hidden_size" not in config:
        return None
    found = {ours: next((config[name] for name in theirs if config.get(name)), 0) for ours, theirs in _HUGGING_FACE.items()}
    found["head_dim"] = found["head_dim"] or found["d_model"] // max(1, found["n_heads"])
    found["max_seq_len"] = found["max_seq_len"] or 2048
    return found
