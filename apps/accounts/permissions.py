from django.conf import settings
from django.utils.translation import gettext_lazy as _
from rest_framework.permissions import SAFE_METHODS, BasePermission


class ReadOrOperate(BasePermission):
    """Everyone signed in reads; operators and administrators change."""

    message = _("This needs the role operator.")

    def has_permission(self, request, view):
        user = request.user
        return bool(user and user.is_authenticated and (request.method in SAFE_METHODS or user.may_operate))


class Operates(BasePermission):
    """For what only operators may see."""

    message = _("This needs the role operator.")

    def has_permission(self, request, view):
        return bool(request.user and request.user.is_authenticated and request.user.may_operate)


class SignedIn(BasePermission):
    """For what every role may do: ask, rate, manage one's own tokens."""

    def has_permission(self, request, view):
        return bool(request.user and request.user.is_authenticated)


class MayChat(BasePermission):
    """Whoever is signed in; everybody where the operator opened the chat to guests."""

    def has_permission(self, request, view):
        return settings.GUEST_CHAT or bool(request.user and request.user.is_authenticated)


class Administers(BasePermission):
    message = _("This needs the role admin.")

    def has_permission(self, request, view):
        return bool(request.user and request.user.is_authenticated and request.user.may_administer)
