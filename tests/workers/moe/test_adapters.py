"""Adapters in PEFT's layout: ours as `peft` reads them, and those that `peft` wrote."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.workers.moe.test_families import make
from workers.moe.adapters import add_adapter, save_adapter
from workers.moe.checkpoint import BrokenModel, load_model, save_model
from workers.moe.importing import ImportSpec, import_folder
from workers.moe.layouts import UnsupportedModel
from workers.training.lora import adapt, adapter_pairs, adapters
from workers.training.spec import LoraSpec

FAMILIES = (
    "gpt_oss",
    "deepseek_v3",
    "deepseek_v3, dense throughout",
    "qwen3_moe, a dense layer, weights as they are, sliding",
    "mixtral",
    "olmoe",
    "glm4_moe",
    "llama",
)
TOKENS = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(8))


def parent_of(name, tokenizer, tmp_path, **changes):
    """A folder of ours of that family."""
    make(name, **changes).save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs", 64)
    save_model(tmp_path / "parent", load_model(tmp_path / "theirs")[0], tokenizer, "A test.")
    return tmp_path / "parent"


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_peft_gives_the_adapted_logits_and_so_does_the_parent_with_the_adapter_added(name, tokenizer, tmp_path):
    folder = parent_of(name, tokenizer, tmp_path)
    adapted, parent = load_model(folder)[0], load_model(folder)[0]
    adapt(adapted, LoraSpec(rank=3, alpha=5.0), seed=0)
    for adapter in adapters(adapted).values():
        adapter.lora_B.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    expected = adapted(TOKENS)
    assert not close(parent(TOKENS), expected)

    save_adapter(tmp_path / "adapter", adapted.config, adapter_pairs(adapted), rank=3, alpha=5.0)

    base = AutoModelForCausalLM.from_pretrained(folder)
    assert close(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(TOKENS).logits, expected)
    add_adapter(parent, tmp_path / "adapter")
    assert close(parent(TOKENS), expected)


def written_by_peft(folder, target, **config):
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, **config)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    model.save_pretrained(target)
    return model


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe"])
def test_an_adapter_that_peft_wrote_is_imported_onto_its_parent(name, tokenizer, tmp_path):
    folder = parent_of(name, tokenizer, tmp_path, vocab_size=tokenizer.vocab_size)
    chosen = {"target_modules": ["q_proj", "v_proj"], "target_parameters": ["mlp.experts.down_proj"], "use_rslora": True}
    theirs = written_by_peft(folder, tmp_path / "adapter", **chosen)

    spec = ImportSpec(version=1, source_folder=tmp_path / "adapter", output_folder=tmp_path / "out", work_folder=tmp_path, parent_folder=folder)
    import_folder(spec)

    with torch.no_grad():
        assert close(load_model(tmp_path / "out")[0](TOKENS), theirs(TOKENS).logits)


def test_what_is_no_plain_lora_of_this_parent_is_refused_by_name(tokenizer, tmp_path):
    folder = parent_of("llama", tokenizer, tmp_path)
    written_by_peft(folder, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(UnsupportedModel, match="use_dora = True"):
        add_adapter(load_model(folder)[0], tmp_path / "dora")
    written_by_peft(folder, tmp_path / "adapter", target_modules=["q_proj"])
    other = parent_of("deepseek_v3", tokenizer, tmp_path)
    with pytest.raises(UnsupportedModel, match=r"q_proj, which this parent does not have"):
        add_adapter(load_model(other)[0], tmp_path / "adapter")
    wider = parent_of("llama", tokenizer, tmp_path, hidden_size=64)
    with pytest.raises(BrokenModel, match="does not fit this parent"):
        add_adapter(load_model(wider)[0], tmp_path / "adapter")
