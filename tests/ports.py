"""Ports for servers that tests start."""

import socket

_held: list[socket.socket] = []


def free_port() -> int:
    """One that nobody else is given while this process lives: its server takes it a while later, and may go and come back.

    It is held bound, and not listened at: a connection is refused as at any port without a server. A server that sets SO_REUSEADDR may have it all the
    same, and ours do.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return holder.getsockname()[1]
