"""The official `openai` client for Node works unchanged: its tests are written as such a service would write them, in `node/`."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stack import PATIENCE_SECONDS, statement_of

SOURCES = Path(__file__).with_name("node")
# What npm says of a registry that is not there, that says nothing (FETCH_ERROR, in this version), or that is out of order.
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "FETCH_ERROR", "E502", "E503", "E504")


def _packages(lock: Path) -> dict[str, dict]:
    """What a lock holds, or what npm writes down when it has installed all of it. Nothing where there is no such file."""
    return {name: package for name, package in json.loads(lock.read_text())["packages"].items() if name} if lock.exists() else {}


@pytest.fixture(scope="session")
def project(request) -> Path:
    """A folder with the client as it is locked, kept in pytest's cache from one run to the next."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: nodejs, npm)")
    folder = request.config.cache.mkdir("openai-node")
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    if _packages(folder / "node_modules" / ".package-lock.json") != _packages(SOURCES / "package-lock.json"):
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=20000"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        if any(code in done.stderr for code in NO_NETWORK):
            pytest.skip("npm cannot reach its registry")
        assert done.returncode == 0, f"the client could not be installed:\n{done.stderr[-2000:]}"
    return folder


def test_the_client_for_node_works_unchanged(project, stack, knowing, token_for):
    env = {
        **os.environ, "OPENAI_BASE_URL": f"{stack.url}/v1", "OPENAI_API_KEY": stack.token, "LIMITED_API_KEY": token_for(1), "MODEL": knowing,
        "STATEMENT": statement_of("Compass"),
    }  # fmt: skip
    command = ["node", "--test", "--test-reporter=tap", "openai.test.mjs"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# pass 8" in done.stdout
