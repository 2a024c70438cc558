from collections.abc import Iterator

import pytest

from tests.upstream_server import KEY, Server
from workers.upstream.engine import UpstreamEngine
from workers.upstream.spec import UpstreamSpec


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("DSPORTAL_UPSTREAM_KEY_TESTS", KEY)
    made = Server()
    made.start()
    yield made
    made.kill()


@pytest.fixture
def spec(server) -> UpstreamSpec:
    return UpstreamSpec(base_url=f"http://127.0.0.1:{server.port}/v1/", model="words", key="tests")


@pytest.fixture
def engine(spec) -> Iterator[UpstreamEngine]:
    made = UpstreamEngine(spec)
    yield made
    made.close()
