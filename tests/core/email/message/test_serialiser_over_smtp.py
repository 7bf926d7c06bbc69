"""Any text, name, file name and bytes, sent over SMTP and read by the standard library, is what it was."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.smtpd import CAPABILITIES, SmtpServer

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends.smtp import SMTPBackend
from openviper.core.email.message import EmailMessageData, check_message
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.settings import EmailSettings

HEADER_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=100)
BODY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=500)
STUFFING = ".\n..\n.\r\n\r\n.\r.\n\nQUIT\n"


@pytest.fixture(params=[CAPABILITIES, ("PIPELINING",), ()], ids=["BDAT", "DATA pipelined", "DATA"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[SmtpServer]:
    with SmtpServer(capabilities=request.param) as server:
        yield server


def lines(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if not text or text.endswith("\n") else f"{text}\n"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(subject=HEADER_TEXT, name=HEADER_TEXT, text=BODY_TEXT, filename=HEADER_TEXT, content=st.binary(max_size=500))
@example("=?utf-8?q?x=0D=0ABcc=3A_e=40x.test?=", '"; <a@b>', STUFFING, 'a"; b=c', b"\r\n.\r\n")
@example("é" * 100, "日本語" * 20, "From here\n" * 3 + "x" * 1200, "日本語" * 30, b"\x00" * 300)
@example(".", ".", ".", ".", b".")
async def test_what_was_said_arrives(
    server: SmtpServer, subject: str, name: str, text: str, filename: str, content: bytes
) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    data = EmailMessageData(
        [f'"{quoted}" <to@example.com>'],
        subject,
        text=text,
        html=text,
        bcc=["blind@example.com"],
        sender="shop@example.com",
        attachments=[AttachmentData(filename, content), AttachmentData("m.eml", STUFFING.encode(), "message/rfc822")],
    )
    message = await serialise_message(check_message(data, default_sender=None), max_message_bytes=1_000_000)
    async with SMTPBackend(EmailSettings.load(server.settings())) as backend:
        await backend.send(message)
    received = (await server.arrive(1))[-1]
    assert received.content == b"".join(message.content)
    assert received.recipients == ["to@example.com", "blind@example.com"]
    read = received.parse()
    assert read["Subject"] == subject
    assert [address.addr_spec for address in read["To"].addresses] == ["to@example.com"]
    assert read["Bcc"] is None
    for kind in ("plain", "html"):
        part = read.get_body((kind,))
        assert part is not None
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        assert payload.decode().replace("\r\n", "\n") == lines(text)
    attachment, _ = read.iter_attachments()
    assert attachment["Content-Disposition"].params["filename"] == filename
    assert attachment.get_content() == content
