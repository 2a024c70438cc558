"""A real portal with a random model, for the benchmarks that ask over HTTP: speed does not depend on what the weights say."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serving import random_model
from tests.stack import Stack


@contextmanager
def portal_with_model(preset: str = "nano", **environment: str) -> Iterator[tuple[Stack, str]]:
    """The portal and the id of its one version, loaded."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        folder = random_model(preset, home / "imports" / "model")
        with Stack(home, env={"DSPORTAL_JOB_NICENESS": "0", **environment}) as portal:
            version = portal.wait_job(portal.post("/api/v1/model-versions/", {"name": "measured", "path": str(folder)}))["model_version"]
            portal.ask("What is entry 0?", version=version)
            yield portal, version
