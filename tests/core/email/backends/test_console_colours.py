"""ConsoleBackend on a terminal: colours and a table, the same text, and no control characters."""

import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from support.terminal import on_a_terminal, terminal

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends.console import ConsoleBackend
from openviper.core.email.backends.console_view import render
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

MakeMessage = Callable[..., OutgoingMessage]

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


async def shown_on_a_terminal(message: OutgoingMessage) -> str:
    with terminal() as (stream, written):
        await ConsoleBackend(EmailSettings(), stream).send(message)
    return b"".join(written).decode().replace("\r\n", "\n")


@pytest.fixture
def message(outgoing: MakeMessage, monkeypatch: pytest.MonkeyPatch) -> OutgoingMessage:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return outgoing(
        bcc=["dot@example.test"],
        subject="Grüße [bold]not markup[/bold] :smile:",
        text="Schöne Grüße\n\tmit Einzug, " + "long " * 60,
        html="<p>Hi</p>",
        attachments=[
            AttachmentData("rechnung 世界.pdf", b"x" * 2048, "application/pdf"),
            AttachmentData("logo.png", b"x", "image/png", inline=True, content_id="logo"),
        ],
    )


async def test_a_terminal_gets_colours_and_the_same_words(message: OutgoingMessage) -> None:
    shown = await shown_on_a_terminal(message)
    assert "\x1b[36mFrom:        \x1b[0m" in shown
    assert "\x1b[1mGrüße [bold]not markup[/bold] :smile:\x1b[0m" in shown
    assert COLOUR.sub("", shown).split() == [
        *render(message).split("Attachments:")[0].split(),
        *["Attachments", "name", "type", "size"],
        *["rechnung", "世界.pdf", "application/pdf", "2.0", "kB"],
        *["logo.png", "image/png", "1", "byte", "inline,", "cid:logo"],
        "-" * 78,
    ]


async def test_only_a_terminal_gets_colours(message: OutgoingMessage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write plain text, even if an environment variable asks for colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = StringIO()
    await ConsoleBackend(EmailSettings(), stream).send(message)
    assert stream.getvalue() == render(message)
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
async def test_no_color_turns_colours_off(
    message: OutgoingMessage, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", await shown_on_a_terminal(message))


async def test_nothing_in_a_message_drives_the_terminal(outgoing: MakeMessage, message: OutgoingMessage) -> None:
    hostile = outgoing(
        text="\x1b]0;owned\x07 \x9b31m \u202e \x1b[2J",
        attachments=[AttachmentData("a\u202efdp\u2066.exe", b"", "application/pdf")],
    )
    shown = COLOUR.sub("", await shown_on_a_terminal(hostile))
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown) == []
    assert "\\x1b]0;owned\\x07" in shown
    assert "a\\u202efdp\\u2066.exe" in shown


async def test_a_long_file_name_is_shown_to_its_end(outgoing: MakeMessage, message: OutgoingMessage) -> None:
    shown = await shown_on_a_terminal(
        outgoing(attachments=[AttachmentData(f"{'a' * 150}.exe", b"", "application/pdf")])
    )
    assert "".join(COLOUR.sub("", shown).split()).count("a") >= 150
    assert ".exe" in "".join(line.split()[0] for line in COLOUR.sub("", shown).splitlines() if line.strip())


def test_without_rich_a_terminal_gets_the_plain_block(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text('EMAIL = {"backend": "ConsoleBackend", "default_sender": "a@example.com"}')
    code = "import sys; sys.modules['rich'] = None; from openviper.cli import viperctl; viperctl()"
    done = on_a_terminal([sys.executable, "-c", code, "email", "send", "b@example.com", "--project", str(tmp_path)])
    assert done.returncode == 0, done.stdout
    assert "\x1b" not in done.stdout
    assert "Subject:     Test message" in done.stdout
