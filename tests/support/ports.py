"""Ports for servers that are stopped and started again."""

import random
import socket

__all__ = ["lasting_port"]


def lasting_port() -> int:
    """A free port of 127.0.0.1 below those that the system gives to clients.

    Otherwise a client of anybody may get it while the server is down, even the one that tries to reach the server.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
