"""`Idempotency-Key`: a POST that is sent again, because its answer was lost on the way, is done once and answered the same.

As the IETF's draft (draft-ietf-httpapi-idempotency-key-header) has it: the same key with another body is 422, and one whose first
request is still being worked on is 409. Keys belong to whoever sent them. Only JSON is remembered: a stream cannot be played again,
and a file that is uploaded twice is two uploads.
"""

import hashlib
import json
import re
from contextlib import suppress

import redis
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from apps.accounts.problems import plain_refusal
from apps.redis import connection

HEADER = "Idempotency-Key"
KEPT_SECONDS = 24 * 3600
WORKING_SECONDS = 120
MAX_BODY_BYTES = 1024**2
_ACCEPTABLE = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS = ("Content-Type", "Location")


class IdempotencyMiddleware:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        key = request.headers.get(HEADER)
        if key is None or request.method != "POST" or not request.path.startswith(("/api/", "/v1/")) or request.content_type != "application/json":
            return self.get_response(request)
        if not _ACCEPTABLE.fullmatch(key):
            return plain_refusal(request, 400, _("Bad key"), _("An Idempotency-Key is 1 to 255 visible ASCII characters, such as a UUID."))
        name, digest = _name(request, key), hashlib.sha256(request.body).hexdigest()
        try:
            r = connection()
            if not r.set(name, json.dumps({"digest": digest}), nx=True, ex=WORKING_SECONDS):
                return _again(request, json.loads(r.get(name) or "{}"), digest)
        except redis.RedisError:  # doing it without a promise is better than not doing it
            return self.get_response(request)
        try:
            response = self.get_response(request)
        except BaseException:
            _forget(name)
            raise
        if response.streaming or response.status_code >= 500 or response.status_code == 429 or len(response.content) > MAX_BODY_BYTES:
            _forget(name)  # not done: the next one may try
        else:
            _keep(name, digest, response)
        return response


def _keep(name: str, digest: str, response: HttpResponse) -> None:
    kept = {
        "digest": digest, "status": response.status_code, "body": response.content.decode(),
        "headers": {header: response[header] for header in _KEPT_HEADERS if header in response},
    }  # fmt: skip
    with suppress(redis.RedisError):  # it is done; doing it again would be worse than forgetting the key
        connection().set(name, json.dumps(kept), ex=KEPT_SECONDS)


def _forget(name: str) -> None:
    with suppress(redis.RedisError):
        connection().delete(name)


def _name(request: HttpRequest, key: str) -> str:
    who = request.headers.get("Authorization") or request.COOKIES.get("dsportal_session", "")
    return "dsportal:idempotency:" + hashlib.sha256(f"{who}\n{request.path}\n{key}".encode()).hexdigest()


def _again(request: HttpRequest, kept: dict, digest: str) -> HttpResponse:
    if kept and kept["digest"] != digest:
        detail = _("This Idempotency-Key was sent with another body. Take a new key for a new request.")
        return plain_refusal(request, 422, _("Used before"), detail)
    if "status" not in kept:
        detail = _("The first request with this Idempotency-Key is still being worked on; ask again in a moment.")
        answer = plain_refusal(request, 409, _("Being done"), detail)
        answer["Retry-After"] = "1"
        return answer
    response = HttpResponse(kept["body"], status=kept["status"])
    for header, value in kept["headers"].items():
        response[header] = value
    response["Idempotent-Replayed"] = "true"
    return response
