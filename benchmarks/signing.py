"""Measure what DKIM signing costs, next to dkimpy and to serialising; with ``--long`` verify 500 messages as well.

``python benchmarks/signing.py`` prints microseconds of CPU time for a message of ``--body`` bytes, and how many times
dkimpy's that is. The runs alternate. ``--long`` sends ``--messages`` messages of all shapes through a real Postfix
and a real Exim, and counts the signatures that dkimpy and OpenDKIM find valid, before and after a change.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent / "tests"), str(_HERE.parent)]

import dkim as dkimpy  # type: ignore[import-untyped]
from support.dkim_keys import ED25519, RSA
from support.exim import Exim
from support.messages import HEAD, outgoing
from support.postfix import Postfix
from support.signed_mail import verify_through

from openviper.core.email.message.dkim import SIGNED_HEADERS, DkimSigner, load_key

_RUNS = 7
_SECONDS = 0.3  # of each run
_SEED = 7


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--body", type=int, default=1800, help="bytes of the message's body")
    parser.add_argument("--long", action="store_true", help="verify messages through real servers")
    parser.add_argument("--messages", type=int, default=500, help="messages of --long, for each server")
    options = parser.parse_args()
    costs = _measure(options.body)
    for name, cost in costs.items():
        print(f"{name:<24} {cost * 1e6:>9,.0f} us")
    for kind in ("RSA-2048", "Ed25519"):
        print(f"{kind}: dkimpy takes {costs[f'dkimpy, {kind}'] / costs[f'here, {kind}']:.1f} times as long")
    if options.long:
        for server in (Postfix, Exim):
            with server() as started, tempfile.TemporaryDirectory() as folder:
                found = asyncio.run(verify_through(started, options.messages, _SEED, Path(folder)))
            print(f"{server.__name__}: {found}")


def _measure(body: int) -> Mapping[str, float]:
    """Return the seconds of CPU time for a signature, the median of the runs."""
    line = b"A line of text that is as long as others are. 0123456789\r\n"
    message = outgoing(line * (body // len(line) + 1))
    raw = b"".join(message.content)
    include = [name.encode() for name in SIGNED_HEADERS if name.encode() + b":" in HEAD.lower()]
    calls: dict[str, Callable[[], object]] = {}
    for kind, pem, algorithm in (("RSA-2048", RSA, b"rsa-sha256"), ("Ed25519", ED25519, b"ed25519-sha256")):
        signer = DkimSigner("shop.example", [load_key("s", pem.encode())])
        key = pem.encode() if kind == "RSA-2048" else _seed_of(pem)
        calls[f"here, {kind}"] = lambda signer=signer: signer.sign_now(message)  # type: ignore[misc]
        calls[f"dkimpy, {kind}"] = lambda key=key, algorithm=algorithm: dkimpy.sign(  # type: ignore[misc]
            raw, b"s", b"shop.example", key, signature_algorithm=algorithm, include_headers=include
        )
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_RUNS):
        for name, call in calls.items():
            runs[name].append(_time(call))
    return {name: statistics.median(times) for name, times in runs.items()}


def _time(call: Callable[[], object]) -> float:
    call()
    count, begin = 0, time.process_time()
    while (spent := time.process_time() - begin) < _SECONDS:
        call()
        count += 1
    return spent / count


def _seed_of(pem: str) -> bytes:
    """Return an Ed25519 key as dkimpy reads it: its 32 bytes in base64."""
    from base64 import b64encode

    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = load_key("s", pem.encode()).key
    return b64encode(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))


if __name__ == "__main__":
    main()
