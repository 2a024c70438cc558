"""Which methods apply to which kind of model. Light: the web process imports it."""

from typing import Any

from workers.moe.config import ModelConfig

METHODS = ("int8", "prune", "distill", "onnx", "policy")
_FINISHED = {"int8": "An INT8", "onnx": "An ONNX"}


# INT8's compiled code, and the graph that is written for ONNX, are of the plain decoder; a policy ends in INT8.
_PLAIN_ONLY = ("int8", "onnx", "policy")
_INT8_FAMILIES = ("gpt_oss", "glm4_moe", "llama")


def applicable(kind: str, method: str, config: dict[str, Any] | None = None) -> str | None:
    """None where the method applies, else a sentence for people that says why it does not.

    `kind`: of the version (moe, dense, pruned, distilled, int8, onnx); `method`: one of METHODS; `config`: the version's, where it
    is known, as ModelConfig.as_dict() says it.
    """
    if kind in _FINISHED and (kind, method) != ("int8", "onnx"):
        return f"{_FINISHED[kind]} version is compressed already; compress its parent instead."
    if kind == "pruned" and method == "prune":
        return "This version is pruned already; prune its parent with another threshold or sparsity instead."
    if kind == "pruned" and method == "policy":
        return "The policy starts from a full model; run it on this version's parent, or quantize this one to INT8."
    return _beyond(method, config) if config and method in _PLAIN_ONLY else None


def _beyond(method: str, described: dict[str, Any]) -> str | None:
    try:
        config = ModelConfig.from_dict(described)
    except (TypeError, ValueError):  # a row that does not say what the model is; the job reads the folder, and says the same
        return None
    features = config.special_features
    if not features and method != "onnx" and config.family not in _INT8_FAMILIES:
        features = (config.family,)
    if features:
        return f"INT8 and ONNX do not express what this model has ({', '.join(features)}); prune or distil it instead."
    return None
