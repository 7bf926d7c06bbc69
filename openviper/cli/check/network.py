"""The way to the mail server: its name, and a connection to one of its addresses."""

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openviper.cli.check.result import CheckResult
from openviper.cli.check.waiting import in_thread

__all__ = ["ServerTarget", "find_addresses", "open_connection"]

_MOST = 6  # addresses that are tried


@dataclass(frozen=True, slots=True)
class ServerTarget:
    """An address as ``getaddrinfo`` gives it."""

    family: int
    address: tuple[Any, ...]

    @property
    def text(self) -> str:
        """For people."""
        return str(self.address[0])


async def find_addresses(host: str, port: int, deadline: float) -> tuple[CheckResult, Sequence[ServerTarget]]:
    """What the system's resolver says of ``host``."""
    try:
        answers = await in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline)
    except TimeoutError:
        remedy = "see whether this machine's resolver can be reached (/etc/resolv.conf)"
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
    """Try every address at once; the connection is the first of those that answer, in the resolver's order."""
    targets = targets[:_MOST]
    results = await asyncio.gather(*(_connect(target, deadline) for target in targets))
    opened = [result for result in results if isinstance(result, socket.socket)]
    failures = {target.text: result for target, result in zip(targets, results, strict=True) if isinstance(result, str)}
    for spare in opened[1:]:
        spare.close()
    faults = ", ".join(f"{address}: {reason}" for address, reason in failures.items())
    if not opened:
        remedy = 'correct EMAIL["host"] and EMAIL["port"]; see that the server runs and no firewall is in the way'
        return CheckResult.failed("tcp", f"port {port}: {faults}", remedy), None
    if failures:
        remedy = "give that address a server, or take it out of the DNS: whoever tries it first waits"
        return CheckResult.warning("tcp", f"port {port} is open, but not everywhere: {faults}", remedy), opened[0]
    return CheckResult.ok("tcp", f"port {port} is open"), opened[0]


async def _connect(target: ServerTarget, deadline: float) -> socket.socket | str:
    """The connection, or why there is none."""
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
