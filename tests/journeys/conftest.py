from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_copy


@pytest.fixture(scope="package")
def stack(trained_home: Path, tmp_path_factory) -> Iterator[Stack]:
    """One portal for this folder's tests, with version 1 live and version 2 waiting."""
    yield from running_copy(trained_home, tmp_path_factory.mktemp("journeys"))


@pytest.fixture(scope="module")
def knowing(stack: Stack) -> str:
    """The second version's name: it knows its facts, live or not."""
    return max(
        (row for row in stack.rows("/api/v1/model-versions/") if row["kind"] == "moe" and row["evaluation"]),
        key=lambda row: row["evaluation"]["bleu"],
    )["name"]


@pytest.fixture
def token_for(stack: Stack) -> Callable[[int], str]:
    """A new token that may ask so many times a minute. Where a minute begins between two questions, one more is answered: of those of the last minute
    that still count, the portal counts whole ones (`apps.accounts.quotas`). So who is to be refused asks twice more."""

    def make(requests_per_minute: int) -> str:
        return stack.post("/api/v1/tokens/", {"name": "a client's", "requests_per_minute": requests_per_minute})["token"]

    return make
