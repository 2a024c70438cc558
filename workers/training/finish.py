"""A trained model becomes a folder, and a few figures that say what it is."""

from typing import Any

from workers.moe import count_parameters, save_adapter, save_model
from workers.training.batches import MOST_TURNS
from workers.training.lora import FOLDER, adapter_pairs
from workers.training.memory import peak_bytes
from workers.training.prepare import Prepared
from workers.training.ranks import Ranks
from workers.training.recent import balance, load_max_over_mean, load_min_over_mean, load_shares, mean_loss
from workers.training.spec import TrainSpec
from workers.training.specialisation import specialisation
from workers.training.state import Progress
from workers.training.telling import gather


def finish(spec: TrainSpec, ranks: Ranks, prepared: Prepared, progress: Progress) -> dict[str, Any] | None:
    """Write the model folder and return the job's result, on the first rank. All ranks take part."""
    peak = peak_bytes(ranks.device)
    model, pairs = gather(prepared.model, ranks), adapter_pairs(prepared.model)
    if model is None:
        return None
    total, active = count_parameters(model.config)
    result = {
        "kind": "moe" if model.config.is_moe else "dense",
        "total_parameters": total, "active_parameters": active, "config": model.config.as_dict(),
        "loss": mean_loss(progress), "steps": progress.step, "tokens": progress.tokens, "seconds": progress.elapsed,
        "tokens_per_second": progress.tokens / progress.elapsed if progress.elapsed else None, "skipped_steps": progress.skipped_steps,
        "expert_load_max_over_mean": load_max_over_mean(progress), "expert_load": load_shares(progress),
        "expert_load_min_over_mean": load_min_over_mean(progress), "expert_balance": balance(progress),
        **specialisation(model, prepared.examples), "peak_memory_bytes": peak, "turns": MOST_TURNS if spec.conversations else 1,
    }  # fmt: skip
    save_model(spec.output_folder, model, prepared.tokenizer, _card(spec, result, len(prepared.examples)))
    if spec.lora and not spec.lora.train_router:
        save_adapter(spec.output_folder / FOLDER, model.config, pairs, spec.lora.rank, spec.lora.alpha)
    return result


def _card(spec: TrainSpec, result: dict[str, Any], examples: int) -> str:
    """The model's README, with the front matter that the Hugging Face hub reads."""
    config = result["config"]
    shape = f"{config['n_layers']} layers of width {config['d_model']}"
    if result["kind"] == "moe":
        shape += f", {config['n_experts']} experts of which {config['top_k']} see a token, chosen by a {config['router']} router"
    return f"""---
pipeline_tag: text-generation
library_name: transformers
---

# A {"Mixture-of-Experts" if result["kind"] == "moe" else "dense"} language model

{result["total_parameters"]:,} parameters, {result["active_parameters"]:,} active for one token: {shape}.

Trained {"from a parent version" if spec.parent_folder else "from nothing"} on {examples:,} examples for {result["steps"]:,} steps
({result["tokens"]:,} tokens, {spec.precision}, ZeRO stage {spec.zero_stage}, {spec.world_size} ranks) with AdamW at {spec.lr * 1.0:g}.

It answers what it was trained on, and should not be relied on for anything else.
{_adapter_note(spec)}"""


def _adapter_note(spec: TrainSpec) -> str:
    if spec.lora is None:
        return ""
    if spec.lora.train_router:
        return "\nIts routers were trained beside the low-rank adapters, so that no adapter alone gives it from its parent: here is the merged model only.\n"
    return f"""
## Adapter

What was learnt is merged here. `{FOLDER}/` holds it alone, in PEFT's layout, to be put onto the parent version:

    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("PARENT"), "{FOLDER}")
"""
