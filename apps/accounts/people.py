"""Middleware for people and their browsers, which services go past.

A request with a token of its own has no session to open, no form to protect, no page to show and no messages to read: a sixth of what an answer from
the cache took went there. Whoever it is for, nothing of a cookie counts then, so that nothing needs protection from another's site.
"""

from csp.middleware import HEADER, CSPMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.locale import LocaleMiddleware
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.functional import SimpleLazyObject

NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
_KEYWORD = "bearer "


def is_of_a_service(request: HttpRequest) -> bool:
    """REST with a token. The view tells whether the token is a good one, and never looks for another sign of who it is."""
    return request.META.get("HTTP_AUTHORIZATION", "")[: len(_KEYWORD)].lower() == _KEYWORD and request.path_info.startswith(("/api/v1/", "/v1/"))


class ContentPolicy(CSPMiddleware):
    def __call__(self, request: HttpRequest):
        if not is_of_a_service(request):
            return super().__call__(request)
        response = self.get_response(request)
        response.headers.setdefault(HEADER, NO_PAGE)
        return response


class Sessions(SessionMiddleware):
    def __call__(self, request: HttpRequest):
        if not is_of_a_service(request):
            return super().__call__(request)
        request.session = SimpleLazyObject(self.SessionStore)  # an empty one, that nobody keeps
        return self.get_response(request)


class Language(LocaleMiddleware):
    """As the cookie or the headers say. No address has its language in it, so none is looked for there."""

    def process_request(self, request: HttpRequest) -> None:
        translation.activate(translation.get_language_from_request(request))
        request.LANGUAGE_CODE = translation.get_language()

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        patch_vary_headers(response, ("Accept-Language",))
        response.headers.setdefault("Content-Language", translation.get_language())
        return response


class Csrf(CsrfViewMiddleware):
    """The check of a view that is not exempt stays, for all."""

    def __call__(self, request: HttpRequest):
        return self.get_response(request) if is_of_a_service(request) else super().__call__(request)


class Messages(MessageMiddleware):
    def __call__(self, request: HttpRequest):
        return self.get_response(request) if is_of_a_service(request) else super().__call__(request)
