"""Keep the engine busy with prompts until all are answered."""

import queue
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from workers.batch.prompts import Prompt
from workers.engine import Completion, EngineError, ParameterRefused, PictureRefused, PromptTooLong, SamplingParams, Ticket

WINDOW = 64  # prompts with the engine at once: enough to fill its batch
TRIES = 3  # of a row that fails for no fault of its own
MAX_SEED = 2**31 - 1
REFUSALS = (ParameterRefused, PictureRefused, PromptTooLong)


class Answers(Protocol):
    def submit(self, messages: list[dict[str, str]], sampling: SamplingParams, *, is_batch: bool) -> Ticket: ...


def answer_all(
    engine: Answers, prompts: Iterable[Prompt], *, max_tokens: int, temperature: float, seed: int, window: int = WINDOW
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """An entry for each prompt, as they are done. What a row itself is refused for is its `error`; any other failure is tried again, and then raised."""
    finished: queue.SimpleQueue[tuple[Prompt, Ticket, int]] = queue.SimpleQueue()

    def begin(prompt: Prompt, tries: int) -> None:
        # A row's own seed: begun again it says the same, wherever the batch was cut off.
        ticket = engine.submit(prompt.messages, SamplingParams(max_tokens, temperature, seed=(seed + prompt.row) & MAX_SEED), is_batch=True)
        ticket.when_done(lambda: finished.put((prompt, ticket, tries)))

    def take() -> dict[str, Any] | None:
        prompt, ticket, tries = finished.get()
        try:
            return _entry(prompt, ticket.result())
        except REFUSALS as refusal:
            return _refused(prompt, str(refusal))
        except EngineError:
            if tries >= TRIES:
                raise
            begin(prompt, tries + 1)
            return None

    running = 0
    for prompt in prompts:
        if prompt.wrong:
            yield _refused(prompt, prompt.wrong)
            continue
        while running >= window:
            if entry := take():
                running -= 1
                yield entry
        try:
            begin(prompt, 1)
            running += 1
        except EngineError as refusal:  # of the conversation itself; a closed engine is the worker's end
            if not isinstance(refusal, REFUSALS) and type(refusal) is not EngineError:
                raise
            yield _refused(prompt, str(refusal))
    while running:
        if entry := take():
            running -= 1
            yield entry


def _entry(prompt: Prompt, done: Completion) -> dict[str, Any]:
    return {
        "row": prompt.row, **prompt.fields, "answer": done.text, "finish_reason": done.finish_reason,
        "usage": {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens},
    }  # fmt: skip


def _refused(prompt: Prompt, why: str) -> dict[str, Any]:
    return {"row": prompt.row, **prompt.fields, "error": why}
