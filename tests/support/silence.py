"""Addresses of this machine that never answer, as behind a firewall that drops packets or a broken IPv6 route."""

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["silent"]


@contextlib.contextmanager
def silent(host: str, port: int = 0) -> Iterator[int]:
    """Make ``host`` silent at a port, which is returned: its queue of connections is full, so SYNs are dropped."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        address = listener.getsockname()
        while True:
            filler = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            filler.settimeout(0.2)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        yield int(address[1])
