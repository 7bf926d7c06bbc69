"""Check the network: resolve the mail server's name and connect to its addresses."""

import asyncio
import os
import socket
from collections.abc import Sequence

from openviper.core.email.backends.smtp.remedies import NO_ADDRESS, UNREACHABLE
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import remaining
from openviper.tcp import SocketAddress, connect_one, resolve_host

__all__ = ["find_addresses", "open_connection"]

_MAX_ADDRESSES = 6


async def find_addresses(host: str, port: int, deadline: float) -> tuple[CheckResult, Sequence[SocketAddress]]:
    """Resolve ``host`` with the system's resolver; return the result and its addresses, none if that failed."""
    try:
        async with asyncio.timeout_at(deadline):
            targets = await resolve_host(host, port)
    except TimeoutError:
        remedy = "check that this machine can reach its resolver (/etc/resolv.conf)"
        return CheckResult.failed("dns", f"no answer for {host} in time", remedy), ()
    except OSError as error:
        return CheckResult.failed("dns", f"{host} has no address: {error.strerror}", NO_ADDRESS), ()
    except UnicodeError:
        return CheckResult.failed("dns", f"{host} cannot be a host name", 'correct EMAIL["host"]'), ()
    shown = ", ".join(dict.fromkeys(target.text for target in targets))
    return CheckResult.ok("dns", f"{host} is {shown}" if shown != host else f"{host} is an address"), targets


async def open_connection(
    targets: Sequence[SocketAddress], port: int, deadline: float
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
        return CheckResult.failed("tcp", f"port {port}: {faults}", UNREACHABLE), None
    if failures:
        remedy = "run the server on that address, or remove it from the DNS: clients that try it first wait"
        return CheckResult.warning("tcp", f"port {port} is open, but not everywhere: {faults}", remedy), opened[0]
    return CheckResult.ok("tcp", f"port {port} is open"), opened[0]


async def _connect(target: SocketAddress, deadline: float) -> socket.socket | str:
    """Return the connection, or the reason why it failed."""
    try:
        async with asyncio.timeout_at(deadline):
            return await connect_one(target)
    except TimeoutError:
        return "no answer in time"
    except OSError as error:
        return _reason(error)


def _reason(error: OSError) -> str:
    return "no connection" if error.errno is None else os.strerror(error.errno)
