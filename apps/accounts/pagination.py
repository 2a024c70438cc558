import re

from django.db.models import AutoField
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination

_POSITION = re.compile(r"[0-9A-Za-z]{1,40}")


class NewestFirst(CursorPagination):
    """`{"next", "previous", "results"}`; ids are ULIDs, so their order is the order of creation."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 500

    def paginate_queryset(self, queryset, request, view=None):
        self._numbers = isinstance(queryset.model._meta.pk, AutoField)
        return super().paginate_queryset(queryset, request, view)

    def decode_cursor(self, request):
        """A cursor's position is an id; any other that somebody makes up is refused before the database sees it."""
        cursor = super().decode_cursor(request)
        if cursor and cursor.position is not None:
            position = cursor.position
            if not _POSITION.fullmatch(position) or (self._numbers and not position.isdecimal()):
                raise NotFound(self.invalid_cursor_message)
        return cursor
