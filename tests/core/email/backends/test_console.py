import asyncio
import io
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from support.patience import PATIENCE

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends.console import ConsoleBackend
from openviper.core.email.backends.console_view import render
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

MakeMessage = Callable[..., OutgoingMessage]


def test_a_message_is_shown_decoded_and_complete(outgoing: MakeMessage) -> None:
    message = outgoing(
        recipients=["Jörg Müller <joerg@example.test>", "bob@example.test"],
        cc=["cid@example.test"],
        bcc=["dot@example.test"],
        reply_to=["help@example.test"],
        headers={"X-Order": "7", "List-Unsubscribe": "<https://x.test/u>"},
        subject="Grüße aus 世界",
        text="Schöne Grüße\nBis bald",
        html="<p>Schöne Grüße</p>",
        attachments=[
            AttachmentData("invoice.pdf", b"x" * 2048, "application/pdf"),
            AttachmentData("logo.png", b"x", "image/png", inline=True, content_id="logo"),
        ],
    )
    date = message.prepared.date.strftime("%a, %d %b %Y %H:%M:%S %z")
    assert render(message).splitlines() == [
        "-" * 78,
        'From:        "Shop" <shop@example.test>',
        'To:          "Jörg Müller" <joerg@example.test>, bob@example.test',
        "Cc:          cid@example.test",
        "Bcc:         dot@example.test  (in the envelope only)",
        "Reply-To:    help@example.test",
        "Subject:     Grüße aus 世界",
        f"Date:        {date}",
        f"Message-ID:  {message.message_id}",
        "X-Order:     7",
        "List-Unsubscribe: <https://x.test/u>",
        "",
        "Schöne Grüße",
        "Bis bald",
        "",
        "[and as HTML, 22 bytes]",
        "",
        "Attachments:",
        "  invoice.pdf  application/pdf  2.0 kB",
        "  logo.png     image/png        1 byte  inline, cid:logo",
        "-" * 78,
    ]


def test_an_envelope_that_differs_from_the_headers_is_shown(outgoing: MakeMessage) -> None:
    message = outgoing(recipients=["ann@example.test", "bob@example.test"], envelope_sender="bounces@example.test")
    shown = render(message.for_recipients(("bob@example.test",)))
    assert "\nReturn path: bounces@example.test\n" in shown
    assert "\nSent to:     bob@example.test\n" in shown
    assert "Sent to" not in render(message)


def test_a_message_without_text_says_so(outgoing: MakeMessage) -> None:
    assert "\n(no text part)\n\n[and as HTML, 9 bytes]\n" in render(outgoing(html="<p>Hi</p>\n"[:9]))


def test_nothing_in_a_message_drives_the_terminal(outgoing: MakeMessage) -> None:
    message = outgoing(
        text="\x1b]0;owned\x07 \x9b31m \u202e",
        attachments=[AttachmentData("a\u202efdp.exe", b"", "application/pdf")],
    )
    shown = render(message)
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown) == []
    assert "\\x1b]0;owned\\x07" in shown


async def test_standard_output_is_looked_up_when_it_is_written_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, outgoing: MakeMessage
) -> None:
    backend = ConsoleBackend(EmailSettings())
    await backend.send(outgoing(subject="One"))
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    await backend.send(outgoing(subject="Two"))
    monkeypatch.undo()
    assert "Subject:     One" in capsys.readouterr().out
    assert "Subject:     Two" in stream.getvalue()


class Writes(io.StringIO):
    """Stream that keeps the text of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return super().write(text)


async def test_a_message_is_one_write(outgoing: MakeMessage) -> None:
    stream = Writes()
    backend = ConsoleBackend(EmailSettings(), stream)
    messages = [outgoing(subject=f"Number {number}", text="line\n" * 200) for number in range(10)]
    await asyncio.gather(*map(backend.send, messages))
    assert sorted(stream.parts) == sorted(map(render, messages))


class InPieces(io.StringIO):
    """Pipe that takes few characters at a time."""

    def write(self, text: str) -> int:
        for start in range(0, len(text), 100):
            super().write(text[start : start + 100])
            time.sleep(0.001)
        return len(text)


async def test_messages_do_not_mix_on_a_stream_that_writes_in_pieces(outgoing: MakeMessage) -> None:
    stream = InPieces()
    # Two backends, as two event loops of one process have.
    one, other = ConsoleBackend(EmailSettings(), stream), ConsoleBackend(EmailSettings(), stream)
    messages = [outgoing(subject=f"Number {number}", text="line\n" * 100) for number in range(4)]
    await asyncio.gather(*(backend.send(message) for backend in (one, other) for message in messages))
    shown = stream.getvalue()
    assert [shown.count(render(message)) for message in messages] == [2, 2, 2, 2]


async def test_a_stream_that_cannot_show_a_character_gets_its_escape(outgoing: MakeMessage) -> None:
    raw = io.BytesIO()
    backend = ConsoleBackend(EmailSettings(), io.TextIOWrapper(raw, encoding="ascii"))
    await backend.send(outgoing(subject="Grüße"))
    assert b"Subject:     Gr\\xfc\\xdfe\n" in raw.getvalue()


class Blocked(io.StringIO):
    """Terminal that was stopped with Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        assert self.released.wait(PATIENCE)
        return super().write(text)


async def test_a_blocked_console_does_not_block_the_loop(outgoing: MakeMessage) -> None:
    stream = Blocked()
    sending = asyncio.create_task(ConsoleBackend(EmailSettings(), stream).send(outgoing()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not sending.done()
    stream.released.set()
    assert (await sending).accepted == ("ann@example.test",)


async def test_a_closed_stream_is_a_delivery_error(outgoing: MakeMessage) -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(DeliveryError, match="ConsoleBackend: cannot write to the console"):
        await ConsoleBackend(EmailSettings(), stream).send(outgoing())


async def test_a_process_without_standard_output_gets_a_delivery_error(
    monkeypatch: pytest.MonkeyPatch, outgoing: MakeMessage
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(DeliveryError, match="there is no standard output"):
        await ConsoleBackend(EmailSettings()).send(outgoing())


def test_the_date_is_that_of_the_message(outgoing: MakeMessage) -> None:
    shown = re.search(r"^Date: +(.*)$", render(outgoing()), re.MULTILINE)
    assert shown is not None
    date = datetime.strptime(shown[1], "%a, %d %b %Y %H:%M:%S %z")
    assert abs((datetime.now(UTC) - date).total_seconds()) < 60
