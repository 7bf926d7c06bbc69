"""Measure how long one large message blocks the event loop, and its memory beyond the attachment.

    .venv/bin/python benchmarks/loop_stall.py          # 25 MB as bytes, from a file and from an async iterator
    .venv/bin/python benchmarks/loop_stall.py --megabytes 200 --tries 1 --only iterator

The mail server is a separate process that discards everything. A heartbeat on the loop measures by how much each of
its sleeps of a millisecond is late; its result while nothing is sent is the machine's noise. Memory is the process's
peak (VmHWM of Linux) minus its memory with the attachment loaded, or on disk. Each case runs in its own process,
because a process keeps freed memory. The limits of EMAIL are raised to the size.
"""

import argparse
import asyncio
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trustme

from openviper.conf import override
from openviper.core.email import send_email

MB = 1024 * 1024
NAP = 0.001


@dataclass
class Heartbeat:
    """Milliseconds that a sleep was late: in total, without waiting for a processor, and spent computing."""

    longest: float = 0.0
    held: float = 0.0
    work: float = 0.0


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Heartbeat]:
    seen = Heartbeat()

    async def beat() -> None:
        while True:
            begun, waited = time.perf_counter(), processor()
            await asyncio.sleep(NAP)
            late = (time.perf_counter() - begun - NAP) * 1000
            worked, queued = (after - before for after, before in zip(processor(), waited, strict=True))
            seen.longest = max(seen.longest, late)
            seen.held = max(seen.held, late - queued)
            seen.work = max(seen.work, worked)

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield seen
    finally:
        task.cancel()


def processor() -> tuple[float, float]:
    """Return the milliseconds that this thread has run, and that it has waited for a processor."""
    worked, queued, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(worked) / 1e6, int(queued) / 1e6


def memory(field: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def send(attachment: Any) -> tuple[Heartbeat, float]:
    """Send the attachment once; return the heartbeat, and the milliseconds of the send."""
    begun = time.perf_counter()
    async with heartbeat() as seen:
        await send_email("to@example.com", "large", "See attached.", attachments=[attachment])
    return seen, (time.perf_counter() - begun) * 1000


async def measure(case: str, port: int, *, ca: str, size: int, tries: int) -> None:
    email = {"host": "localhost", "port": port, "use_ssl": "TLS" in case, "default_sender": "from@example.com"}
    email |= {"max_attachment_bytes": size, "max_message_bytes": 2 * size + MB}
    with override(EMAIL={**email, "tls_ca_file": ca}), tempfile.TemporaryDirectory() as folder:
        await send_email("to@example.com", "warm", "up", attachments=[("a.txt", b"a")])
        async with heartbeat() as idle:
            await asyncio.sleep(1)
        attachment: Any = Path(folder) / "large.bin"
        if "iterator" in case:
            attachment = ("large.bin", partial(random_pieces, size))
        else:
            await asyncio.to_thread(write_random, attachment, size)
        if "bytes" in case:
            attachment = ("large.bin", await asyncio.to_thread(attachment.read_bytes))
        await asyncio.to_thread(forget_peak)
        before = await asyncio.to_thread(memory, "VmRSS")
        results = [await send(attachment)]
        peak = await asyncio.to_thread(memory, "VmHWM") - before
        results += [await send(attachment) for _ in range(tries - 1)]
    longest, held, work = (max(getattr(seen, field) for seen, _ in results) for field in ("longest", "held", "work"))
    print(
        f"{case}: longest hold {longest:.1f} ms ({idle.longest:.1f} ms when nothing is sent);"
        f" without waiting for a processor {held:.1f} ms, at work {work:.1f} ms\n"
        f"    {sum(took for _, took in results) / tries:.0f} ms a message;"
        f" memory: {peak / MB:.0f} MB, {peak / size:.2f} times the attachment"
    )


async def random_pieces(size: int) -> AsyncIterator[bytes]:
    piece = os.urandom(64 * 1024)
    for _ in range(0, size, len(piece)):
        yield piece


def write_random(file: Path, size: int) -> None:
    with file.open("wb") as stream:
        for _ in range(0, size, MB):
            stream.write(os.urandom(MB))


def serve(certificate: str, *, chunking: bool) -> None:
    """Print a port, then accept all messages, one connection after another."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection if context is None else context.wrap_socket(connection, server_side=True) as peer:
                converse(peer, chunking=chunking)


def converse(peer: socket.socket, *, chunking: bool) -> None:
    with peer.makefile("rwb") as stream:

        def answer(text: str) -> None:
            stream.write(text.encode() + b"\r\n")
            stream.flush()

        answer("220 sink")
        while line := stream.readline():
            verb = line.split()[0].upper()
            if verb == b"EHLO":
                answer("250-sink\r\n250-PIPELINING\r\n" + "250-CHUNKING\r\n" * chunking + "250 SIZE 0")
            elif verb == b"DATA":
                answer("354 go on")
                while stream.readline() != b".\r\n":
                    pass
                answer("250 taken")
            elif verb == b"BDAT":
                left = int(line.split()[1])
                while left:
                    left -= len(stream.read(min(left, MB)))
                answer("250 taken")
            elif verb == b"QUIT":
                answer("221 bye")
                return
            else:
                answer("250 ok")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=25)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--only", metavar="WORDS", default="", help="cases whose names contain these words")
    parser.add_argument("--sink", help=argparse.SUPPRESS)
    parser.add_argument("--data", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sink is not None:
        serve(arguments.sink, chunking=not arguments.data)
    elif arguments.case is not None:
        case, port, ca = arguments.case
        size = arguments.megabytes * MB
        asyncio.run(measure(case, int(port), ca=ca, size=size, tries=arguments.tries))
    else:
        run_cases(sys.argv[1:], arguments.only)


def run_cases(arguments: list[str], only: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ca, certificate = f"{folder}/ca.pem", f"{folder}/certificate.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(ca)
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
        kinds = ("bytes", "file", "iterator")
        cases = [*kinds, *(f"{kind} over TLS" for kind in kinds), "iterator by DATA"]
        for case in (case for case in cases if only in case):
            command = [sys.executable, __file__, "--sink", certificate if "TLS" in case else ""]
            command += ["--data"] if "DATA" in case else []
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sink:
                assert sink.stdout is not None
                port = sink.stdout.readline().strip()
                try:
                    subprocess.run([sys.executable, __file__, *arguments, "--case", case, port, ca], check=True)
                finally:
                    sink.terminate()


if __name__ == "__main__":
    main()
