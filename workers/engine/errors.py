"""What can go wrong with an answer. Every message is for people."""


class EngineError(Exception):
    """An answer cannot be made."""


class UnusableModel(EngineError):
    """The model's folder is damaged, or of a kind that cannot be served."""


class EngineFull(EngineError):
    """Too many sequences wait already; ask again in a moment."""


class EngineClosed(EngineError):
    """The engine was closed before the answer was complete."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for an answer."""

    def __init__(self, tokens: int, limit: int):
        super().__init__(f"The conversation has {tokens:,} tokens; this model reads at most {limit:,}, so that there is room for an answer.")
        self.tokens = tokens
        self.limit = limit


class CacheTooSmall(PromptTooLong):
    """The prompt's keys and values would never fit into the engine's memory."""

    def __init__(self, tokens: int, limit: int, needed_bytes: int, total_bytes: int):
        super().__init__(tokens, limit)
        self.args = (
            f"The conversation has {tokens:,} tokens; their keys and values, and an answer's, take {needed_bytes:,} bytes, and this engine may use "
            f"{total_bytes:,}, which is enough for {limit + 1:,} tokens. Ask for less, or give the inference workers a larger DSPORTAL_ENGINE_CACHE_BYTES.",
        )


class ParameterRefused(EngineError):
    """A parameter does not fit this model. `parameter`: which, in the API's names; empty where it is not known."""

    def __init__(self, message: str, parameter: str = ""):
        super().__init__(message)
        self.parameter = parameter


class PictureRefused(EngineError):
    """The model sees no pictures, or this one cannot be read."""
