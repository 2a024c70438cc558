"""Export to ONNX: the graph checked, run by onnxruntime next to the parent, and its answers compared."""

import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx

from workers.compression.folders import describe_result, load_parent, storage_of
from workers.compression.measure import compare, logit_error, sample_prompts
from workers.compression.onnx_card import card_of
from workers.compression.onnx_graph import OPSET, build_graph
from workers.compression.onnx_runner import open_onnx_runner
from workers.compression.spec import CompressSpec
from workers.compression.telling import tell
from workers.moe import ChatTokenizer, ModelConfig, describe
from workers.moe.checkpoint import publish_folder
from workers.protocol import JobError

ONE_FILE_BYTES = 1_500_000_000  # protobuf ends at 2 GB: above, the weights go into a file of their own
LARGEST_ERROR = 1e-3  # of a logit, in FP32
LARGEST_SHARE = 0.5  # mean error of a logit in INT8, as a share of their deviation: more is a wrong graph, not rounding


def run_onnx(spec: CompressSpec) -> dict[str, Any]:
    tell(0.0, "Loading the model")
    model, tokenizer = load_parent(spec.model_folder, "onnx", int8=True)
    int8 = spec.weights == "int8" or storage_of(spec.model_folder).get("format") == "int8"
    tell(0.1, "Writing the graph", eta_seconds=8.0)
    graph = build_graph(model, int8=int8)
    save_onnx(spec.output_folder, graph, model.config, tokenizer, card_of(spec.model_folder, model.config, int8))
    tell(0.3, "Checking it in onnxruntime", eta_seconds=6.0)
    try:
        onnx.checker.check_model(str(spec.output_folder / "model.onnx"), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise JobError(f"The exported graph is not valid: {error}") from error
    prompts = sample_prompts(spec.dataset_folder, tokenizer, spec.seed)
    room = model.config.max_seq_len - 1
    with closing(open_onnx_runner(spec.output_folder, threads=spec.threads, max_batch=8, max_seq_len=model.config.max_seq_len)) as runner:
        errors = logit_error(model, runner, [tokenizer.encode_prompt(prompt)[:room] for prompt in prompts])
    figure, most = ("mean_abs_error", LARGEST_SHARE * errors["logit_deviation"]) if int8 else ("max_abs_error", LARGEST_ERROR)
    if not errors[figure] < most:
        raise JobError(f"The exported model's logits differ by {errors[figure]:.2g} from the parent's, more than {most:.2g}: not published.")
    tell(0.6, "Comparing answers and speed with the parent", eta_seconds=5.0)
    measured = compare(spec.model_folder, spec.output_folder, prompts)
    return describe_result(
        "onnx", model.config, {**measured, **errors, "opset": OPSET, "nodes": len(graph.graph.node), "weights": "int8" if int8 else "fp32"}
    )


def save_onnx(folder: Path, graph: onnx.ModelProto, config: ModelConfig, tokenizer: ChatTokenizer, card: str) -> None:
    """`model.onnx`, the tokenizer, config.json and the card, under a temporary name and renamed."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    apart = graph.ByteSize() > ONE_FILE_BYTES
    onnx.save_model(graph, str(temporary / "model.onnx"), save_as_external_data=apart, location="model.onnx.data" if apart else None)
    described = describe(config, tokenizer) | {"storage": {"format": "onnx", "model": config.as_dict()}}
    (temporary / "config.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    ids = {name: described[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    (temporary / "generation_config.json").write_text(json.dumps(ids | {"do_sample": False}, indent=1) + "\n")
    tokenizer.save(temporary, config.max_seq_len)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    publish_folder(temporary, folder)
