"""JSON as it may come from anybody: bounded in size, in depth and in the length of its numbers."""

import codecs
import json

from django.conf import settings
from django.utils.translation import gettext as _
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import JSONParser

MAX_DIGITS = 30  # a longer whole number fits no column, and does not even become a float


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ParseError(_("A number in this JSON has %(n)s digits; at most %(most)s are read.") % {"n": len(digits), "most": MAX_DIGITS})
    return int(digits)


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_int=_whole_number, parse_constant=_no_constant)  # `json.loads` would make one for each request


class BodyTooLarge(APIException):
    status_code = 413


class BoundedJSONParser(JSONParser):
    def parse(self, stream, media_type=None, parser_context=None):
        encoding = (parser_context or {}).get("encoding", settings.DEFAULT_CHARSET)
        raw = stream.read(settings.MAX_JSON_BYTES + 1)
        if len(raw) > settings.MAX_JSON_BYTES:
            raise BodyTooLarge(
                _("JSON may have %(n)s MB at most. Send larger data as a file (multipart).") % {"n": f"{settings.MAX_JSON_BYTES / 1024**2:,.0f}"}
            )
        try:
            text = codecs.decode(raw, encoding)
            found = _decoder.decode(text)
            if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair, written as an escape, is no text and can be stored nowhere
                json.dumps(found, ensure_ascii=False).encode()
            return found
        except UnicodeEncodeError as error:
            raise ParseError(_("A text in this JSON holds half of a surrogate pair.")) from error
        except RecursionError as error:
            raise ParseError(_("This JSON is nested too deeply.")) from error
        except (ValueError, LookupError) as error:
            raise ParseError(_("This is not JSON: %(error)s") % {"error": error}) from error
