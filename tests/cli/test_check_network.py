"""The way to the mail server: every address of its name is tried."""

import asyncio
import contextlib
import socket

from support.patience import PATIENCE

from openviper.core.email.delivery.checks.network import find_addresses, open_connection
from openviper.core.email.delivery.checks.result import Status
from openviper.tcp import SocketAddress


def in_good_time() -> float:
    return asyncio.get_running_loop().time() + PATIENCE


async def test_an_address_that_does_not_answer_is_a_warning_when_another_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        targets = [SocketAddress(socket.AF_INET, (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        result, sock = await open_connection(targets, port, in_good_time())
        assert sock is not None
        assert sock.getpeername() == ("127.0.0.1", port)
        sock.close()
    assert result.status is Status.WARNING
    assert "127.0.0.2: Connection refused" in result.found


async def test_of_several_open_connections_one_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as other:
        port = server.getsockname()[1]
        other.bind(("127.0.0.2", port))
        other.listen()
        targets = [SocketAddress(socket.AF_INET, (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        result, sock = await open_connection(targets, port, in_good_time())
        assert sock is not None
        assert sock.getpeername() == ("127.0.0.2", port)
        sock.close()
    assert result.status is Status.OK


async def test_a_port_that_swallows_connections_fails_in_time() -> None:
    """A full backlog stands for a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        soon = asyncio.get_running_loop().time() + 0.2
        result, sock = await open_connection([SocketAddress(socket.AF_INET, ("127.0.0.1", port))], port, soon)
        for filler in fillers:
            filler.close()
    assert sock is None
    assert result.status is Status.FAILED
    assert "no answer in time" in result.found


async def test_a_silent_address_leaves_time_for_the_server_at_another() -> None:
    """The first address has a full backlog; half of the time is left when the second one is taken."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket() as silent,
        contextlib.ExitStack() as fillers,
    ):
        port = server.getsockname()[1]
        silent.bind(("127.0.0.2", port))
        silent.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        targets = [SocketAddress(socket.AF_INET, (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        result, sock = await open_connection(targets, port, begun + 3)
        assert sock is not None
        assert sock.getpeername() == ("127.0.0.1", port)
        assert loop.time() < begun + 3
        sock.close()
    assert result.status is Status.WARNING
    assert "127.0.0.2: no answer in time" in result.found


async def test_what_cannot_be_a_name_fails() -> None:
    result, targets = await find_addresses(f"{'a' * 70}.example", 25, in_good_time())
    assert not targets
    assert result.status is Status.FAILED
    assert result.remedy
