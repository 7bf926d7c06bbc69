"""Attachments that are kept in files, from send_email to a real SMTP server: retries, delivery modes and limits."""

import asyncio
import os
import random
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from starlette.datastructures import UploadFile
from support.patience import PATIENCE
from support.smtpd import CAPABILITIES, ReceivedMessage, SmtpServer
from support.stalls import watched_loop

from openviper.core.email import DeliveryMode, InvalidMessage, send_email, submit_email
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message import Content, OutgoingMessage
from openviper.core.email.settings import EmailSettings

MB = 1024 * 1024
CONTENT = random.Random(1).randbytes(3 * MB + 5)


async def stream(content: bytes = CONTENT) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]


@asynccontextmanager
async def mailer_for(server: SmtpServer, **settings: Any) -> AsyncIterator[Mailer]:
    values = {"host": server.host, "port": server.port, "default_sender": "shop@example.test", "timeout": PATIENCE}
    mailer = Mailer(EmailSettings(**(values | settings)))
    with using_mailer(mailer):
        yield mailer
    await mailer.dispatcher.drain(PATIENCE)
    await mailer.aclose()


def attached(message: ReceivedMessage) -> bytes:
    (part,) = message.parse().iter_attachments()
    assert isinstance(part, EmailMessage)
    content = part.get_content()
    assert isinstance(content, bytes)
    return content


@pytest.mark.parametrize(
    "offer",
    [CAPABILITIES, ("PIPELINING", "SIZE 100000000"), (), ("CHUNKING",)],
    ids=["chunking", "pipelining", "nothing", "only-chunking"],
)
async def test_what_is_in_a_file_arrives_byte_for_byte(offer: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    with SmtpServer(capabilities=offer) as server:
        async with mailer_for(server):
            for form in (path, stream()):
                await send_email("a@example.test", "Large", text="Attached", attachments=[("a.bin", form)])
        assert [attached(message) == CONTENT for message in await server.arrive(2)] == [True, True]


async def test_an_inline_send_reads_the_file_again_on_another_connection() -> None:
    """The second message finds its connection dead, and is sent again on a new one."""
    with SmtpServer() as server:
        server.fault("MAIL", "drop", nth=2)
        async with mailer_for(server):
            await send_email("a@example.test", "First", text="Opens the connection")
            await send_email("a@example.test", "Large", text="Attached", attachments=("a.bin", stream()))
        messages = await server.arrive(2)
        assert attached(messages[1]) == CONTENT
        assert len({message.connection for message in messages}) == 2


async def test_a_closed_upload_is_sent_again_by_the_dispatcher() -> None:
    """The framework closes it with the response; a temporary failure later it goes out whole."""
    with SmtpServer() as server:
        server.fault("body", 451, nth=1)
        async with mailer_for(server) as mailer:
            outbox = RequestOutbox()
            upload = UploadFile(TemporaryFile(), filename="a.bin")  # noqa: SIM115 - closed below, as frameworks do
            await upload.write(CONTENT)
            with collecting(outbox):
                receipt = await submit_email("a@example.test", "Large", text="Attached", attachments=upload)
            assert receipt.mode == DeliveryMode.DEFERRED
            await upload.close()
            (delivery,) = outbox.flush()
            assert isinstance(delivery.message.content, Content)
            assert delivery.message.content.in_file
            await asyncio.wait_for(delivery.done, PATIENCE)
        (message,) = await server.arrive(1)
        assert attached(message) == CONTENT
        assert mailer.dispatcher.pending == 0


@pytest.mark.parametrize(("size", "mode"), [(40_000, DeliveryMode.DEFERRED), (60_000, DeliveryMode.INLINE)])
async def test_a_message_that_the_dispatcher_could_not_hold_is_sent_inline(size: int, mode: DeliveryMode) -> None:
    """60 kB are more than the 64 kB of dispatcher_bytes when encoded."""
    with SmtpServer() as server:
        async with mailer_for(server, dispatcher_bytes=65_536) as mailer:
            outbox = RequestOutbox()
            with collecting(outbox):
                receipt = await submit_email("a@example.test", "A", text="", attachments=[("a", os.urandom(size))])
            assert receipt.mode == mode
            for delivery in outbox.flush():
                await delivery.done
            assert not mailer.dispatcher.full
        await server.arrive(1)


async def test_limits_are_held_before_anything_is_sent_and_named() -> None:
    with SmtpServer() as server:
        async with mailer_for(server, max_attachment_bytes=2 * MB, max_message_bytes=3 * MB):
            for attachments, setting in [
                ([stream()], "max_attachment_bytes"),
                ([stream(CONTENT[: 2 * MB]), stream(CONTENT[: 2 * MB])], "max_message_bytes"),
                ([stream(CONTENT[: 2 * MB]), stream(CONTENT[: MB // 2])], "max_message_bytes"),  # once encoded
            ]:
                with pytest.raises(InvalidMessage, match=f'EMAIL."{setting}".'):
                    await send_email("a@example.test", "A", text="", attachments=attachments)
        assert server.connections == 0


async def test_the_loop_is_not_held_while_a_file_is_sent() -> None:
    """Nothing blocks, which the guard of all tests would report, and others run throughout."""
    with SmtpServer() as server:
        async with mailer_for(server), watched_loop() as watch:
            await send_email("a@example.test", "Large", text="Attached", attachments=stream(CONTENT * 4))
            assert watch.turns > 12
        await server.arrive(1)


@pytest.mark.parametrize("options", [[], ["--data"]], ids=["BDAT", "DATA"])
async def test_memory_does_not_grow_with_an_attachment(options: list[str]) -> None:
    """40 MB from an async iterator to a server in another process take a few pieces of a megabyte."""
    program = Path(__file__).parents[4] / "benchmarks" / "loop_stall.py"
    sink = await asyncio.create_subprocess_exec(
        sys.executable, str(program), "--sink", "", *options, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert sink.stdout is not None
        port = int(await asyncio.wait_for(sink.stdout.readline(), PATIENCE))
        limits = {"max_attachment_bytes": 40 * MB, "max_message_bytes": 80 * MB, "timeout": PATIENCE}
        settings = EmailSettings(host="127.0.0.1", port=port, default_sender="shop@example.test", **limits)
        mailer = Mailer(settings)
        piece = os.urandom(MB)

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield piece

        with using_mailer(mailer):
            await send_email("a@example.test", "First", text="Opens the connection")
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                await send_email("a@example.test", "Large", text="Attached", attachments=pieces())
                peak = tracemalloc.get_traced_memory()[1] - before
            finally:
                tracemalloc.stop()
        await mailer.aclose()
    finally:
        sink.terminate()
        await sink.wait()
    assert peak < 10 * MB


async def test_a_large_message_as_an_attachment_is_not_encoded() -> None:
    """RFC 2046 section 5.2.1: an attached message travels as it is."""
    inner = b"Subject: inner\r\n\r\n" + b"A line of text\r\n" * 100_000
    with SmtpServer() as server:
        async with mailer_for(server):
            await send_email("a@example.test", "Fwd", text="See", attachments=[("a.eml", stream(inner))])
        (message,) = await server.arrive(1)
        assert inner in message.content


async def test_what_listeners_see_of_a_file_are_its_bytes() -> None:
    with SmtpServer() as server:
        async with mailer_for(server, backend="MemoryBackend") as mailer:
            await send_email("a@example.test", "Large", text="Attached", attachments=stream())
            outgoing: OutgoingMessage = mailer.backend.messages[0]  # type: ignore[attr-defined]
            (part,) = outgoing.prepared.attachments
            assert part.size == len(CONTENT)
            assert await asyncio.to_thread(getattr, part, "content") == CONTENT
