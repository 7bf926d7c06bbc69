"""Connecting to one of several addresses: order, counts, errors, and nothing left behind; on asyncio and uvloop."""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.patience import PATIENCE
from support.silence import silent

from openviper.tcp import (
    ConnectFailed,
    ConnectTimeout,
    SocketAddress,
    connect_host,
    connect_to,
    first_success,
    interleaved,
    is_address,
    resolve_host,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

on_both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def v4(host: str, port: int) -> SocketAddress:
    return SocketAddress(socket.AF_INET, (host, port))


def v6(host: str, port: int) -> SocketAddress:
    return SocketAddress(socket.AF_INET6, (host, port, 0, 0))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: SocketAddress) -> None:
    """Let the system's resolver return ``addresses`` for every name."""
    answers = [(each.family, socket.SOCK_STREAM, 6, "", each.sockaddr) for each in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)


def in_limit(seconds: float = PATIENCE) -> float:
    return asyncio.get_running_loop().time() + seconds


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def peer_of(sock: socket.socket) -> str:
    with sock:
        return str(sock.getpeername()[0])


# Connecting


@on_both_loops
def test_a_single_address_is_connected_to_without_a_task(run: Run, listener: socket.socket) -> None:
    async def connect() -> int:
        loop, started = asyncio.get_running_loop(), 0

        def count(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            nonlocal started
            started += 1
            return asyncio.Task(coroutine, loop=loop, **options)

        loop.set_task_factory(count)
        sock = await connect_to([v4("127.0.0.1", listener.getsockname()[1])], in_limit())
        assert peer_of(sock) == "127.0.0.1"
        return started

    assert run(connect()) == 0


@on_both_loops
@pytest.mark.parametrize("first", ["127.0.0.9", "::1"])
def test_a_silent_address_is_passed_over(run: Run, first: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with silent(first, port):
        before = open_files()
        silent_one = v6(first, port) if ":" in first else v4(first, port)

        async def connect() -> str:
            return peer_of(await connect_to([silent_one, v4("127.0.0.1", port)], in_limit()))

        assert run(connect()) == "127.0.0.1"
        assert open_files() == before


@on_both_loops
def test_a_refusal_starts_the_next_address_at_once(run: Run, listener: socket.socket, closed_port: int) -> None:
    port = listener.getsockname()[1]
    addresses = [v4("127.0.0.1", closed_port), v4("127.0.0.2", closed_port), v4("127.0.0.1", port)]
    assert run(_connect(addresses)) == "127.0.0.1"


async def _connect(addresses: list[SocketAddress], limit: float = PATIENCE) -> str:
    return peer_of(await connect_to(addresses, in_limit(limit)))


@on_both_loops
def test_if_all_refuse_the_error_lists_each_address(run: Run, closed_port: int) -> None:
    addresses = [v4("127.0.0.1", closed_port), v4("127.0.0.2", closed_port)]
    with pytest.raises(ConnectFailed, match=r"^127\.0\.0\.1: Connection refused, 127\.0\.0\.2: Connection refused$"):
        run(_connect(addresses))
    with pytest.raises(ConnectionRefusedError):
        run(_connect(addresses[:1]))


@on_both_loops
def test_one_limit_is_for_all_addresses_and_the_error_lists_each(run: Run, closed_port: int) -> None:
    with silent("127.0.0.8") as port, silent("127.0.0.9", port):
        addresses = [v4("127.0.0.8", port), v4("127.0.0.1", closed_port), v4("127.0.0.9", port)]
        before = open_files()
        with pytest.raises(
            ConnectTimeout,
            match=r"^127\.0\.0\.8: no answer, 127\.0\.0\.1: Connection refused, 127\.0\.0\.9: no answer$",
        ):
            run(_connect(addresses, limit=2.0))
        with pytest.raises(ConnectTimeout, match=r"^127\.0\.0\.8: no answer$"):
            run(_connect(addresses[:1], limit=0.1))
        assert open_files() == before


@on_both_loops
def test_a_cancelled_connect_leaves_neither_task_nor_socket(run: Run) -> None:
    with silent("127.0.0.8") as port, silent("127.0.0.9", port):
        before = open_files()

        async def cancel() -> None:
            connecting = asyncio.create_task(_connect([v4("127.0.0.8", port), v4("127.0.0.9", port)]))
            while len(asyncio.all_tasks()) < 4:  # this one, connecting, and an attempt for each address
                await asyncio.sleep(0.01)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run(cancel())
        assert open_files() == before


# The race


async def test_attempts_start_in_order_and_a_late_result_is_discarded() -> None:
    events: list[str] = []
    both = asyncio.Event()

    async def slow(name: str) -> str:
        events.append(f"start {name}")
        await both.wait()
        return name

    async def last() -> str:
        events.append("start last")
        both.set()
        return await slow("last")

    discarded: list[str] = []
    attempts = [lambda: slow("first"), lambda: slow("second"), last]
    won = await first_success(attempts, failures=OSError, discard=discarded.append, delay=0.01)
    assert events[:3] == ["start first", "start second", "start last"]
    assert sorted([won, *discarded]) == ["first", "last", "second"]


async def test_a_failure_starts_the_next_attempt_without_the_delay() -> None:
    async def fail() -> str:
        raise ConnectionError("no")

    async def succeed() -> str:
        return "yes"

    async with asyncio.timeout(PATIENCE / 2):
        won = await first_success([fail, fail, succeed], failures=OSError, discard=print, delay=PATIENCE)
    assert won == "yes"


async def test_the_last_error_is_raised_when_all_fail_and_any_other_at_once() -> None:
    async def fail(text: str) -> str:
        raise ConnectionError(text)

    async def mistake() -> str:
        raise TypeError("a bug")

    async def never() -> str:
        return await asyncio.get_running_loop().create_future()

    before = asyncio.all_tasks()
    with pytest.raises(ConnectionError, match="second"):
        await first_success([lambda: fail("first"), lambda: fail("second")], failures=OSError, discard=print)
    with pytest.raises(TypeError, match="a bug"):
        await first_success([never, mistake], failures=OSError, discard=print, delay=0.01)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("addresses", "ordered"),
    [
        ("", ""),
        ("a", "a"),
        ("A1", "A1"),
        ("ABC12", "A1B2C"),
        ("12ABC", "1A2BC"),
        ("123", "123"),
        ("1A2B", "1A2B"),
    ],
)
def test_the_families_take_turns(addresses: str, ordered: str) -> None:
    assert "".join(interleaved(addresses, family=str.isalpha)) == ordered


# The look-up


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", True), ("::1", True), ("fe80::1%lo", True), ("localhost", False), ("1.2", False)],
)
def test_an_address_needs_no_look_up(host: str, address: bool) -> None:
    assert is_address(host) is address


@on_both_loops
def test_a_name_is_looked_up_once_for_all_who_ask_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, go = [], threading.Event()

    def resolver(host: str, port: int, **_: object) -> list[Any]:
        calls.append((host, port))
        go.wait(PATIENCE)
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", resolver)

    async def ask() -> list[list[SocketAddress]]:
        asking = [asyncio.create_task(resolve_host(name, 25)) for name in ("a.test", "a.test", "b.test")]
        while len(calls) < 2:
            await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(*asking)
        return [*(task.result() for task in asking), await resolve_host("a.test", 25)]

    assert run(ask()) == [[v4("127.0.0.1", 25)]] * 4
    assert sorted(calls) == [("a.test", 25), ("a.test", 25), ("b.test", 25)]


@on_both_loops
def test_a_resolver_that_hangs_delays_neither_the_caller_nor_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    go, calls = threading.Event(), []

    def resolver(*_: object, **__: object) -> list[Any]:
        calls.append(1)
        go.wait(PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    ended = threading.Event()
    host = f"{id(go)}.test"  # a look-up of the same name that has not ended would be shared

    def connect() -> None:
        with pytest.raises(ConnectTimeout, match="resolver"):
            run(connect_host(host, 25, 0.2))
        ended.set()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        assert ended.wait(PATIENCE / 2), "the event loop's end waited for the resolver"
        assert calls == [1]
    finally:
        go.set()
        thread.join()


@on_both_loops
def test_a_name_without_an_address_is_the_resolvers_error(run: Run) -> None:
    with pytest.raises(socket.gaierror):
        run(connect_host("no-such-host.invalid", 25, PATIENCE))
    with pytest.raises(UnicodeError):
        run(connect_host("a" * 70 + ".test", 25, PATIENCE))


@on_both_loops
def test_a_name_is_connected_to_by_whichever_address_answers(
    run: Run, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.getsockname()[1]
    answer_with(monkeypatch, v6("::1", port), v4("127.0.0.9", port), v4("127.0.0.1", port))

    async def connect() -> str:
        return peer_of(await connect_host("mail.test", port, PATIENCE))

    with silent("::1", port), silent("127.0.0.9", port):
        assert run(connect()) == "127.0.0.1"
