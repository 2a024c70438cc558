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


class ParameterRefused(EngineError):
    """A parameter does not fit this model."""


class PictureRefused(EngineError):
    """The model sees no pictures, or this one cannot be read."""
