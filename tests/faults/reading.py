"""Services that read long streams, while something happens to the portal."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.stack import PATIENCE_SECONDS, Stack
from workers.moe.tokenizer import ChatTokenizer

READERS, TOKENS = 16, 480  # as many as the model's window leaves, together seconds of work


class Readers:
    """Services that each read one long stream, and keep what came: text, and events that are no part of an answer."""

    def __init__(self, stack: Stack, body: dict):
        self.stack, self.body = stack, body
        self.begun = threading.Semaphore(0)
        self.texts, self.ends = [""] * READERS, [""] * READERS
        self._pool = ThreadPoolExecutor(READERS)
        self._running = [self._pool.submit(self._read, number) for number in range(READERS)]

    def question(self, number: int) -> list[dict]:
        return [{"role": "user", "content": f"What is an anchor? {number}"}]

    def _read(self, number: int) -> None:
        with self.stack.client(self.stack.token) as http:
            body = {**self.body, "messages": self.question(number), "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        self._take(number, line.removeprefix("data: "))

    def _take(self, number: int, data: str) -> None:
        event = {} if data == "[DONE]" else json.loads(data)
        if "choices" not in event:
            self.ends[number] = data
        elif piece := event["choices"][0]["delta"].get("content"):
            if not self.texts[number]:
                self.begun.release()
            self.texts[number] += piece

    def finish(self) -> None:
        for reading in self._running:
            reading.result(PATIENCE_SECONDS)
        self._pool.shutdown()


def endless(stack: Stack) -> dict:
    """A question's parameters by which an answer goes on until its limit of tokens: the token that ends one never comes."""
    version = stack.version("live")
    end = ChatTokenizer.load(stack.home / "artifacts" / "models" / version["id"]).end_id
    return {"model": version["name"], "max_tokens": TOKENS, "temperature": 0, "logit_bias": {str(end): -100}}


@contextmanager
def reading(stack: Stack, body: dict) -> Iterator[Readers]:
    readers = Readers(stack, body)
    try:
        for _ in range(READERS):
            assert readers.begun.acquire(timeout=PATIENCE_SECONDS)
        yield readers
    finally:
        readers.finish()
