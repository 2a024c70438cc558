"""Does an upstream answer, and does it have the model? Asked before a version is made of it."""

import time
from typing import NamedTuple

import httpx

from workers.upstream.spec import UpstreamSpec, key_of, variable_of

TIMEOUT_SECONDS = 5.0
NAMES_TOLD = 8


class CannotBeUsed(Exception):
    """`field`: of the spec, that should be another one. The message is for people."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class Found(NamedTuple):
    milliseconds: float
    window: int | None  # tokens of question and answer, where the server tells (vLLM and SGLang: max_model_len)


def headers_of(spec: UpstreamSpec) -> dict[str, str]:
    """CannotBeUsed where the key that the spec names is not there."""
    try:
        key = key_of(spec)
    except OSError as error:
        raise CannotBeUsed("key", f"The file that {variable_of(spec.key)}_FILE names cannot be read: {error.strerror}.") from error
    if key is None:
        raise CannotBeUsed("key", f"There is no key named {spec.key}: {variable_of(spec.key)} is not set for this process.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def check(spec: UpstreamSpec) -> Found:
    """Ask for its list of models. CannotBeUsed."""
    began = time.monotonic()
    try:
        # No redirects, and no proxy or password from the environment: the settings say where questions may go.
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            response = client.get(f"{spec.base_url}/models", headers=headers_of(spec))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise CannotBeUsed("base_url", f"{spec.place} does not answer: {reason_of(error)}.") from error
    if response.status_code in (401, 403):
        raise CannotBeUsed("key", f"{spec.place} refuses the key ({response.status_code}).")
    listed = _listed(response)
    if listed is None:
        said = f"{spec.base_url}/models answers with {response.status_code}, and not with a list of models"
        raise CannotBeUsed("base_url", f"{said}. The address usually ends in /v1.")
    if spec.model not in listed:
        names = ", ".join(sorted(listed)[:NAMES_TOLD]) or "none"
        raise CannotBeUsed("model", f"{spec.place} has no model {spec.model}; it has: {names}.")
    window = listed[spec.model].get("max_model_len")
    return Found((time.monotonic() - began) * 1000, window if isinstance(window, int) and window > 0 else None)


def _listed(response: httpx.Response) -> dict[str, dict] | None:
    try:
        return {entry["id"]: entry for entry in response.json()["data"]} if response.is_success else None
    except (ValueError, KeyError, TypeError):
        return None


def reason_of(error: Exception) -> str:
    """What a library says of a connection that failed; of one that took too long it says nothing."""
    return str(error).rstrip(".") or ("it takes too long" if isinstance(error, httpx.TimeoutException) else type(error).__name__)
