"""Which methods apply to which kind of model. Light: the web process imports it."""


def applicable(kind: str, method: str) -> str | None:
    """None where the method applies, else a sentence for people that says why it does not."""
    if kind in ("int8", "onnx"):
        return f"An {kind.upper()} version is compressed already; compress its parent instead."
    return None
