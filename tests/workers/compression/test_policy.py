import pytest

from workers.compression.policy import run_policy
from workers.moe import load_model
from workers.protocol import JobError


def test_int8_is_chosen_where_it_keeps_the_quality(make_model, save, spec, dataset):
    result = run_policy(made := spec("policy", save(make_model()), dataset_folder=dataset, max_questions=6, max_bleu_loss=100.0))
    assert result["kind"] == "int8"
    assert [(row["step"], row["decision"]) for row in result["details"]["trail"]] == [("baseline", "measured"), ("INT8", "chosen")]
    load_model(made.output_folder)


def test_dearer_methods_are_tried_where_int8_is_too_large_and_each_leaves_its_figures(make_model, save, spec, dataset):
    parent = save(make_model(d_model=96, head_dim=24))
    limit = (parent / "model.safetensors").stat().st_size // 10
    result = run_policy(spec("policy", parent, dataset_folder=dataset, max_questions=6, max_bleu_loss=100.0, max_bytes=limit, steps=2))
    trail = result["details"]["trail"]
    assert [row["decision"] for row in trail] == ["measured", "refused", "refused", "chosen"]
    assert f"more than the {limit:,} allowed" in trail[1]["reason"]
    assert all(row["figures"]["bytes"] > 0 and row["figures"]["questions"] == 6 for row in trail)
    assert trail[-1]["figures"]["bytes"] <= limit


def test_without_held_out_questions_there_is_no_policy(make_model, save, spec):
    with pytest.raises(JobError, match="was not trained here"):
        run_policy(spec("policy", save(make_model())))
