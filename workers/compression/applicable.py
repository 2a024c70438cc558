"""Which methods apply to which kind of model. Light: the web process imports it."""

METHODS = ("int8", "prune", "distill", "onnx", "policy")
_FINISHED = {"int8": "An INT8", "onnx": "An ONNX"}


def applicable(kind: str, method: str) -> str | None:
    """None where the method applies, else a sentence for people that says why it does not.

    `kind`: of the version (moe, dense, pruned, distilled, int8, onnx); `method`: one of METHODS.
    """
    if kind in _FINISHED and (kind, method) != ("int8", "onnx"):
        return f"{_FINISHED[kind]} version is compressed already; compress its parent instead."
    if kind == "pruned" and method == "prune":
        return "This version is pruned already; prune its parent with another threshold or sparsity instead."
    if kind == "pruned" and method == "policy":
        return "The policy starts from a full model; run it on this version's parent, or quantize this one to INT8."
    return None
