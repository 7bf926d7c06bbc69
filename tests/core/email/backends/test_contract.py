"""The interface of a backend, tested on each of ours and on a user's own."""

import asyncio
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from support.smtpd import SmtpServer

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends import EmailBackend, get_backend
from openviper.core.email.backends.console import ConsoleBackend
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

MakeMessage = Callable[..., OutgoingMessage]


@dataclass
class Delivered:
    """A message at its destination; ``content`` is None if it is shown to people instead of stored."""

    sender: str
    recipients: list[str]
    content: bytes | None


class Place(ABC):
    """A backend and its mail's destination."""

    backend: EmailBackend

    @abstractmethod
    def delivered(self) -> list[Delivered]: ...

    def text(self) -> str:
        """Return all that arrived, as bytes or as printed."""
        return "".join((one.content or b"").decode() for one in self.delivered())


class Memory(Place):
    def __init__(self) -> None:
        self.backend = get_backend("MemoryBackend", EmailSettings())

    def delivered(self) -> list[Delivered]:
        assert isinstance(self.backend, MemoryBackend)
        return [
            Delivered(message.envelope.sender, list(message.envelope.recipients), b"".join(message.content))
            for message in self.backend.messages
        ]


class File(Place):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backend = get_backend("FileBackend", EmailSettings(file_dir=folder))

    def delivered(self) -> list[Delivered]:
        found = []
        for path in sorted(self.folder.glob("*.eml")):
            envelope = json.loads(path.with_suffix(".json").read_text())
            found.append(Delivered(envelope["sender"], envelope["recipients"], path.read_bytes()))
        return found


class Console(Place):
    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.backend = ConsoleBackend(EmailSettings(), stream=self.stream)

    def text(self) -> str:
        return self.stream.getvalue()

    def delivered(self) -> list[Delivered]:
        blocks = [block for block in self.text().split("-" * 78 + "\n") if block.strip()]
        return [self._read(block) for block in blocks]

    def _read(self, block: str) -> Delivered:
        labelled = [line.partition(":") for line in block.partition("\n\n")[0].splitlines()]
        fields = {label: value.strip().removesuffix("(in the envelope only)") for label, _, value in labelled}
        shown = ",".join(fields[label] for label in ("To", "Cc", "Bcc") if label in fields)
        named = [part.rpartition("<")[2].strip(" >") for part in fields.get("Sent to", shown).split(",")]
        return Delivered(fields["From"].rpartition("<")[2].rstrip(">"), named, None)


class Smtp(Place):
    def __init__(self, server: SmtpServer) -> None:
        self.server = server
        self.backend = get_backend("SMTPBackend", EmailSettings(**server.settings()))

    def delivered(self) -> list[Delivered]:
        return [Delivered(one.sender, one.recipients, one.content) for one in self.server.messages]


CUSTOM = """
from openviper.core.email.backends import DeliveryReport, EmailBackend

class ListBackend(EmailBackend):
    def __init__(self, settings):
        super().__init__(settings)
        self.sent = []

    async def send(self, message):
        self.sent.append(message)
        return DeliveryReport(accepted=message.envelope.recipients)
"""


class Custom(Place):
    """Backend of a user: only ``send``, named by its dotted path."""

    def __init__(self, folder: Path) -> None:
        (folder / "backend_of_somebody.py").write_text(CUSTOM)
        self.backend = get_backend(settings=EmailSettings(backend="backend_of_somebody.ListBackend"))

    def delivered(self) -> list[Delivered]:
        sent: list[OutgoingMessage] = self.backend.sent  # type: ignore[attr-defined]
        return [Delivered(one.envelope.sender, list(one.envelope.recipients), b"".join(one.content)) for one in sent]


KEEPING_BYTES = ["memory", "file", "smtp", "custom"]


@pytest.fixture(params=[*KEEPING_BYTES, "console"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "smtp":
        with SmtpServer() as server:
            yield Smtp(server)
        return
    monkeypatch.syspath_prepend(str(tmp_path))
    makers: dict[str, Callable[[], Place]] = {
        "memory": Memory,
        "file": lambda: File(tmp_path / "mail"),
        "console": Console,
        "custom": lambda: Custom(tmp_path),
    }
    yield makers[request.param]()


keeping_bytes = pytest.mark.parametrize("place", KEEPING_BYTES, indirect=True)


async def test_a_message_reaches_every_recipient_once(place: Place, outgoing: MakeMessage) -> None:
    message = outgoing(
        recipients=["ann@example.test", "bob@example.test"], cc=["cid@example.test"], bcc=["dot@example.test"]
    )
    async with place.backend as backend:
        report = await backend.send(message)
    (delivered,) = place.delivered()
    everybody = ["ann@example.test", "bob@example.test", "cid@example.test", "dot@example.test"]
    assert sorted(delivered.recipients) == everybody
    assert delivered.sender == "shop@example.test"
    assert sorted(report.accepted) == everybody
    assert report.refused == {}


async def test_only_the_recipients_of_the_envelope_get_the_message(place: Place, outgoing: MakeMessage) -> None:
    """Retry for the recipients who have not got it yet, whatever the headers say."""
    message = outgoing(recipients=["ann@example.test", "bob@example.test"]).for_recipients(("bob@example.test",))
    async with place.backend as backend:
        report = await backend.send(message)
    assert [one.recipients for one in place.delivered()] == [["bob@example.test"]]
    assert report.accepted == ("bob@example.test",)


@keeping_bytes
async def test_bcc_is_in_the_envelope_and_not_in_the_bytes(place: Place, outgoing: MakeMessage) -> None:
    async with place.backend as backend:
        await backend.send(outgoing(bcc=["secret@example.test"]))
    (delivered,) = place.delivered()
    assert "secret@example.test" in delivered.recipients
    assert delivered.content is not None
    assert b"secret@example.test" not in delivered.content
    assert "bcc" not in message_from_bytes(delivered.content)


@keeping_bytes
@pytest.mark.parametrize(
    "text",
    ["", ".", "..\r\n.\r\n", "From here on\nFrom there", "é" * 3000, "x" * 5000, "no line end", "two ends\n\n"],
    ids=["empty", "dot", "dots", "from", "8-bit", "long", "no-end", "ends"],
)
async def test_the_bytes_arrive_unchanged(place: Place, outgoing: MakeMessage, text: str) -> None:
    message = outgoing(text=text, attachments=[AttachmentData("all.bin", bytes(range(256)) * 300)])
    async with place.backend as backend:
        await backend.send(message)
    (delivered,) = place.delivered()
    assert delivered.content == b"".join(message.content)


@keeping_bytes
async def test_the_message_that_arrives_reads_as_the_one_sent(place: Place, outgoing: MakeMessage) -> None:
    message = outgoing(
        recipients=["Jörg Müller <joerg@example.test>"],
        subject="Grüße, 世界 😀",
        text="Schöne Grüße\n",
        attachments=[AttachmentData("Rechnung Nº 7.pdf", b"%PDF", "application/pdf")],
    )
    async with place.backend as backend:
        await backend.send(message)
    (delivered,) = place.delivered()
    assert delivered.content is not None
    parsed = message_from_bytes(delivered.content, policy=policy.default)
    assert parsed["Subject"] == "Grüße, 世界 😀"
    assert parsed["To"].addresses[0].display_name == "Jörg Müller"
    assert parsed["Message-ID"] == message.message_id
    body = parsed.get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n") == "Schöne Grüße\n"
    assert [part.get_filename() for part in parsed.iter_attachments()] == ["Rechnung Nº 7.pdf"]


async def test_an_empty_body_and_subject_are_delivered(place: Place, outgoing: MakeMessage) -> None:
    async with place.backend as backend:
        report = await backend.send(outgoing(text="", subject=""))
    assert report.accepted == ("ann@example.test",)
    assert len(place.delivered()) == 1


async def test_8_bit_names_are_delivered(place: Place, outgoing: MakeMessage) -> None:
    async with place.backend as backend:
        report = await backend.send(outgoing(recipients=["Jörg Müller <joerg@example.test>"], subject="Grüße 世界"))
    assert report.accepted == ("joerg@example.test",)
    (delivered,) = place.delivered()
    assert delivered.recipients == ["joerg@example.test"]


async def test_concurrent_messages_arrive_complete_and_once_each(place: Place, outgoing: MakeMessage) -> None:
    messages = [
        outgoing(recipients=[f"user{number}@example.test"], subject=f"Number {number}", text=f"{number}\n" * 500)
        for number in range(25)
    ]
    async with place.backend as backend:
        reports = await asyncio.gather(*map(backend.send, messages))
    assert [report.accepted for report in reports] == [message.envelope.recipients for message in messages]
    delivered = place.delivered()
    assert sorted(one.recipients[0] for one in delivered) == sorted(
        f"user{number}@example.test" for number in range(25)
    )
    kept = [one.content for one in delivered if one.content is not None]
    assert sorted(kept) == sorted(b"".join(message.content) for message in messages if kept)


async def test_sending_does_not_change_the_message(place: Place, outgoing: MakeMessage) -> None:
    """Keep the message, because a retry sends the same one."""
    message = outgoing(bcc=["secret@example.test"], attachments=[AttachmentData("a.txt", b"a", "text/plain")])
    before = (repr(message.prepared), message.envelope, message.content, message.size)
    async with place.backend as backend:
        await backend.send(message)
        await backend.send(message)
    assert (repr(message.prepared), message.envelope, message.content, message.size) == before
    assert len(place.delivered()) == 2


async def test_closing_twice_does_nothing_more(place: Place, outgoing: MakeMessage) -> None:
    backend = place.backend
    await backend.open()
    await backend.send(outgoing())
    await backend.aclose()
    await backend.aclose()
    assert len(place.delivered()) == 1


async def test_closing_an_unused_backend_does_nothing(place: Place) -> None:
    await place.backend.open()
    await place.backend.aclose()
    assert place.delivered() == []


async def test_an_error_in_the_block_closes_the_backend_and_propagates(place: Place, outgoing: MakeMessage) -> None:
    async def use() -> None:
        async with place.backend as backend:
            await backend.send(outgoing())
            raise RuntimeError("of the application")

    with pytest.raises(RuntimeError, match="of the application"):
        await use()
    assert len(place.delivered()) == 1
