"""Connections to the database. On PostgreSQL each process has a few for all of its threads (`settings.DATABASES`): the server has a hundred for everybody."""

from django.db import connection


def release() -> None:
    """Give this thread's connection back before a long wait; its next query takes another. Not in the middle of a transaction."""
    if connection.settings_dict["OPTIONS"].get("pool") and not connection.in_atomic_block:
        connection.close()


class ReleaseMiddleware:
    """Pieces of a response may go out slowly: whoever makes them takes a connection for as long as it needs one."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        if response.streaming:
            release()
        return response
