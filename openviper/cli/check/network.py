"""Check the network: resolve the mail server's name and connect to its addresses."""

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openviper.cli.check.result import CheckResult
from openviper.cli.check.waiting import in_thread, remaining

__all__ = ["ServerTarget", "find_addresses", "open_connection"]

_MAX_ADDRESSES = 6


@dataclass(frozen=True, slots=True)
class ServerTarget:
    """An address as ``getaddrinfo`` returns it."""

    family: int
    address: tuple[Any, ...]

    @property
    def text(self) -> str:
        """Return the address without the port."""
        return str(self.address[0])


async def find_addresses(host: str, port: int, deadline: float) -> tuple[CheckResult, Sequence[ServerTarget]]:
    """Resolve ``host`` with the system's resolver; return the result and its addresses, none if that failed."""
    try:
        answers = await in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline)
    except TimeoutError:
        remedy = "check that this machine can reach its resolver (/etc/resolv.conf)"
        return CheckResult.failed("dns", f"no answer for {host} in time", remedy), ()
    except OSError as error:
        remedy = 'correct EMAIL["host"], or the DNS of this machine'
        return CheckResult.failed("dns", f"{host} has no address: {error.strerror}", remedy), ()
    except UnicodeError:
        return CheckResult.failed("dns", f"{host} cannot be a host name", 'correct EMAIL["host"]'), ()
    targets = list(dict.fromkeys(ServerTarget(family, address) for family, _, _, _, address in answers))
    shown = ", ".join(dict.fromkeys(target.text for target in targets))
    return CheckResult.ok("dns", f"{host} is {shown}" if shown != host else f"{host} is an address"), targets


async def open_connection(
    targets: Sequence[ServerTarget], port: int, deadline: float
) -> tuple[CheckResult, socket.socket | None]:
    """Connect to all addresses at once; return the result and the first connection in the resolver's order.

    A silent address takes half of the time at most, so that the rest is left for the server at another address.
    """
    targets = targets[:_MAX_ADDRESSES]
    if len(targets) > 1:
        deadline -= remaining(deadline) / 2
    results = await asyncio.gather(*(_connect(target, deadline) for target in targets))
    opened = [result for result in results if isinstance(result, socket.socket)]
    failures = {target.text: result for target, result in zip(targets, results, strict=True) if isinstance(result, str)}
    for spare in opened[1:]:
        spare.close()
    faults = ", ".join(f"{address}: {reason}" for address, reason in failures.items())
    if not opened:
        remedy = 'correct EMAIL["host"] and EMAIL["port"]; check that the server runs and no firewall blocks it'
        return CheckResult.failed("tcp", f"port {port}: {faults}", remedy), None
    if failures:
        remedy = "run the server on that address, or remove it from the DNS: clients that try it first wait"
        return CheckResult.warning("tcp", f"port {port} is open, but not everywhere: {faults}", remedy), opened[0]
    return CheckResult.ok("tcp", f"port {port} is open"), opened[0]


async def _connect(target: ServerTarget, deadline: float) -> socket.socket | str:
    """Return the connection, or the reason why it failed."""
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
    except OSError as error:
        return _reason(error)
    sock.setblocking(False)
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.get_running_loop().sock_connect(sock, target.address)
    except TimeoutError:
        sock.close()
        return "no answer in time"
    except OSError as error:
        sock.close()
        return _reason(error)
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> str:
    return "no connection" if error.errno is None else os.strerror(error.errno)
