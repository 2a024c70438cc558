from django.utils.translation import gettext_lazy as _
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed

from apps.accounts.selectors import user_of_token


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer TOKEN`."""

    keyword = b"bearer"

    def authenticate(self, request):
        parts = get_authorization_header(request).split()
        if not parts or parts[0].lower() != self.keyword:
            return None
        found = user_of_token(parts[1].decode("latin-1")) if len(parts) == 2 else None
        if found is None:
            raise AuthenticationFailed(_("This token is not known or was revoked. Make a new one on the API page."))
        return found

    def authenticate_header(self, request):
        return 'Bearer realm="DSPortal"'


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = BearerAuthentication
    name = "token"

    def get_security_definition(self, auto_schema):
        return {"type": "http", "scheme": "bearer"}
