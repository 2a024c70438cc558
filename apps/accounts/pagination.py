from rest_framework.pagination import CursorPagination


class NewestFirst(CursorPagination):
    """`{"next", "previous", "results"}`; ids are ULIDs, so their order is the order of creation."""

    ordering = "-id"
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 500
