"""`upstream.json`: where a model is served. It names the key, and never holds it."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

UPSTREAM_FILE = "upstream.json"
KEY_VARIABLE = "DSPORTAL_UPSTREAM_KEY_"  # and the key's name in capitals; with _FILE after it, the path of a file that holds the key
MAX_CHARACTERS = 300


class UpstreamSpec(BaseModel):
    """`base_url`: what `/chat/completions` is appended to, usually ending in `/v1`. `key`: the name of its key, empty where it needs none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    base_url: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    model: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]+$")]
    key: Annotated[str, Field(max_length=40, pattern=r"^([a-z0-9][a-z0-9_-]*)?$")] = ""

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, given: str) -> str:
        try:
            parts = urlsplit(given)
            plain = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:  # a port that is no number
            plain = False
        if not plain or parts.username is not None or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\\]", given):
            raise ValueError("give an address such as http://host:8000/v1, without a user, a query or a fragment")
        return given.rstrip("/")

    @property
    def place(self) -> str:
        """Host and port."""
        return urlsplit(self.base_url).netloc.lower()


def is_upstream(folder: Path) -> bool:
    """A model's own folder never is: what is imported cannot send questions elsewhere."""
    return (folder / UPSTREAM_FILE).exists() and not (folder / "config.json").exists()


def is_allowed(spec: UpstreamSpec, hosts: Collection[str]) -> bool:
    """`hosts`: names with or without a port (`gpu-1:8000`, `gpu-1`), or all names below one (`*.serving.svc`)."""
    host = (urlsplit(spec.base_url).hostname or "").lower()
    below = [allowed[1:].lower() for allowed in hosts if allowed.startswith("*.")]
    return any(allowed.lower() in (host, spec.place) for allowed in hosts) or any(host.endswith(end) for end in below)


def variable_of(key: str) -> str:
    """The variable of the environment that holds a key: a name that begins in this way is no other secret's."""
    return KEY_VARIABLE + key.upper().replace("-", "_")


def key_of(spec: UpstreamSpec, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key itself, read anew each time, so that a file may be replaced. None where it is named and not there; "" where none is named.

    OSError where the file that holds it cannot be read.
    """
    if not spec.key:
        return ""
    name = variable_of(spec.key)
    if path := environ.get(f"{name}_FILE"):
        return Path(path).read_text().strip() or None
    return environ.get(name) or None
