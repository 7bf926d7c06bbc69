"""Connect to a host name of several addresses, of which some may be silent: Happy Eyeballs (RFC 8305).

asyncio does so only on request and uvloop never does, so that a first address that nobody answers for (a broken IPv6
route, most often) would use up the whole time limit.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "ConnectFailed",
    "ConnectTimeout",
    "SocketAddress",
    "connect_host",
    "connect_one",
    "connect_to",
    "first_success",
    "interleaved",
    "is_address",
    "resolve_host",
]

_STAGGER = 0.25  # seconds between two attempts (RFC 8305 section 5)

T = TypeVar("T")


class SocketAddress(NamedTuple):
    """An address as ``getaddrinfo`` returns it; ``sockaddr`` is what ``connect`` takes."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def text(self) -> str:
        """Return the address without the port."""
        return str(self.sockaddr[0])


class ConnectFailed(ConnectionError):
    """No address accepts a connection; the text has the reason of each one."""


class ConnectTimeout(TimeoutError):
    """No connection in time; the text has the reason of each address that was tried."""


def is_address(host: str) -> bool:
    """True if ``host`` is an IP address, so that there is nothing to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def connect_host(host: str, port: int, limit: float) -> socket.socket:
    """Look ``host`` up and return a socket connected to the first of its addresses that answers.

    ``limit`` in seconds is for the look-up and all addresses together.

    Raises:
        ConnectTimeout: no answer in time, from the resolver or from any address.
        ConnectFailed: each of several addresses refuses.
        OSError: the name has no address (``socket.gaierror``), or its only one refuses.
        UnicodeError: ``host`` cannot be a host name.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    try:
        async with asyncio.timeout_at(deadline):
            addresses = await resolve_host(host, port)
    except TimeoutError:
        raise ConnectTimeout("the resolver did not answer in time") from None
    return await connect_to(addresses, deadline)


async def connect_to(addresses: Sequence[SocketAddress], deadline: float) -> socket.socket:
    """Return a socket connected to the first of ``addresses`` that answers until ``deadline`` (loop time).

    Raises:
        ConnectTimeout: no answer in time.
        ConnectFailed: each of several addresses refuses.
        OSError: the only address refuses.
    """
    reasons: dict[str, str] = {}
    attempts = [partial(_attempt, address, reasons) for address in interleaved(addresses, family=_family)]
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            return await first_success(attempts, failures=OSError, discard=socket.socket.close)
    except OSError as error:
        if len(attempts) == 1 and not timeout.expired():
            raise
        tried = ", ".join(f"{address}: {reason}" for address, reason in reasons.items())
        if timeout.expired():
            raise ConnectTimeout(tried or "no connection in time") from None
        raise ConnectFailed(tried) from error


async def connect_one(address: SocketAddress) -> socket.socket:
    """Return a socket connected to ``address``.

    Raises:
        OSError: it refuses, or cannot be reached.
    """
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def _attempt(address: SocketAddress, reasons: dict[str, str]) -> socket.socket:
    """Do as ``connect_one``, and keep in ``reasons`` why there is no connection to ``address``, so far."""
    reasons[address.text] = "no answer"
    try:
        return await connect_one(address)
    except OSError as error:
        reasons[address.text] = str(error) if error.errno is None else os.strerror(error.errno)
        raise


async def first_success(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    *,
    failures: type[Exception] | tuple[type[Exception], ...],
    discard: Callable[[T], object],
    delay: float = _STAGGER,
) -> T:
    """Return the result of the first of ``attempts`` that succeeds; a single one is simply awaited.

    Each is started ``delay`` seconds after the one before, or as soon as one has failed. The others are cancelled,
    and ``discard`` is called with a result that comes too late; nothing is running when this returns or raises.

    Raises:
        Exception: the one of the last attempt that failed, if all have failed with ``failures``; any other at once.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    loop = asyncio.get_running_loop()
    waiting = deque(attempts)
    running: dict[asyncio.Task[T], None] = {}  # in the order of their start
    next_start = 0.0
    try:
        while True:
            if waiting and loop.time() >= next_start:
                running[loop.create_task(waiting.popleft()())] = None
                next_start = loop.time() + delay
            pause = max(0.0, next_start - loop.time()) if waiting else None
            await asyncio.wait(tuple(running), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task.done()]:
                error = task.exception()
                if error is None:
                    del running[task]
                    return task.result()
                del running[task]
                if not isinstance(error, failures) or not (running or waiting):
                    raise error
                next_start = 0.0
    finally:
        await _cancel(running, discard)


async def _cancel(tasks: dict[asyncio.Task[T], None], discard: Callable[[T], object]) -> None:
    def finish(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            discard(task.result())

    for task in tasks:
        task.cancel()
        task.add_done_callback(finish)
    if tasks:
        await asyncio.wait(tuple(tasks))


def interleaved(addresses: Sequence[T], *, family: Callable[[T], object]) -> list[T]:
    """Return ``addresses``, the two families in turn, that of the first one first (RFC 8305 section 4)."""
    if len(addresses) < 3:
        return list(addresses)
    first = [address for address in addresses if family(address) == family(addresses[0])]
    others = [address for address in addresses if family(address) != family(addresses[0])]
    return [address for address in chain.from_iterable(zip_longest(first, others)) if address is not None]


def _family(address: SocketAddress) -> int:
    return address.family


_Answer = list[SocketAddress]
_lookups: dict[tuple[int, str, int], "Future[_Answer]"] = {}  # those in progress, by process id, host and port


async def resolve_host(host: str, port: int) -> list[SocketAddress]:
    """Ask the system's resolver for the addresses of ``host``, in its order; returns each one once.

    The call cannot be interrupted, so it is made in a daemon thread of its own: one that hangs delays neither the
    others nor the end of the program, as it would in the event loop's threads. Callers that ask meanwhile share it.

    Raises:
        socket.gaierror: the name is not known, or has no address.
        UnicodeError: ``host`` cannot be a host name.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Answer] = loop.create_future()

    def settle(lookup: "Future[_Answer]") -> None:
        if answer.done():
            return
        error = lookup.exception()
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(lookup.result())

    def finished(lookup: "Future[_Answer]") -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits
            loop.call_soon_threadsafe(settle, lookup)

    _start_lookup(host, port).add_done_callback(finished)
    return await answer


def _start_lookup(host: str, port: int) -> "Future[_Answer]":
    key = (os.getpid(), host, port)  # after a fork the thread is only in the parent
    new: Future[_Answer] = Future()
    lookup = _lookups.setdefault(key, new)
    if lookup is new:
        threading.Thread(target=_look_up, args=(key, new), name="openviper-resolver", daemon=True).start()
    return lookup


def _look_up(key: tuple[int, str, int], lookup: "Future[_Answer]") -> None:
    _, host, port = key
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answer = list(dict.fromkeys(SocketAddress(int(family), sockaddr) for family, _, _, _, sockaddr in found))
    except Exception as error:  # noqa: BLE001 - raised in the waiting tasks
        _lookups.pop(key, None)
        lookup.set_exception(error)
    else:
        _lookups.pop(key, None)
        lookup.set_result(answer)
