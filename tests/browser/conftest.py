from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_copy


@pytest.fixture(scope="package")
def stack(trained_home: Path, tmp_path_factory) -> Iterator[Stack]:
    """One portal for this folder's tests, with version 1 live and version 2 waiting."""
    yield from running_copy(trained_home, tmp_path_factory.mktemp("browser"))
