"""What ``render_email`` gives, and that nothing is sent."""

import email
import email.policy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from openviper.conf import override
from openviper.core.email import InvalidMessage, MessageEvent, RenderedEmail, render_email, send_email, subscribe
from openviper.core.email.backends.memory import sent
from openviper.exceptions import ImproperlyConfigured

MOMENT = datetime(2026, 5, 1, 9, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "welcome.md").write_text("{% block subject %}Welcome, {{ name }}{% endblock %}Hello **{{ name }}**")
    with override(
        TEMPLATES_DIR=tmp_path, EMAIL={"backend": "MemoryBackend", "default_sender": "Shop <shop@example.com>"}
    ):
        yield


async def test_a_template_is_rendered_as_it_would_be_sent() -> None:
    rendered = await render_email(template="welcome.md", context={"name": "Zoë"}, reply_to=[("Help, please", "h@b.c")])
    assert rendered.subject == "Welcome, Zoë"
    assert rendered.text is not None
    assert "Hello **Zoë**" in rendered.text
    assert rendered.html is not None
    assert "<strong>Zoë</strong>" in rendered.html
    assert rendered.headers["Subject"] == "Welcome, Zoë"
    assert rendered.headers["From"] == "Shop <shop@example.com>"
    assert rendered.headers["Reply-To"] == '"Help, please" <h@b.c>'
    assert "To" not in rendered.headers
    read = email.message_from_bytes(bytes(rendered), policy=email.policy.default)
    assert read["Subject"] == "Welcome, Zoë"
    assert read.get_content_type() == "multipart/alternative"


async def test_it_is_byte_for_byte_what_is_sent() -> None:
    fixed = {"headers": {"Message-ID": "<1@example.com>", "X-Tag": ["a", "b"]}, "date": MOMENT}
    arguments = {
        "text": "Hi",
        "attachments": [("a.txt", b"x" * 300_000)],
        "cc": ("Ana", "ana@b.c") and [("Ana", "ana@b.c")],
    }
    rendered = await render_email("Hello", recipients="a@example.com", **arguments, **fixed)  # type: ignore[arg-type]
    before = len(sent)
    await send_email("a@example.com", "Hello", **arguments, **fixed)  # type: ignore[arg-type]
    assert len(sent) == before + 1
    assert rendered.content == b"".join(sent[-1].content)
    assert rendered.headers["X-Tag"] == "a, b"


async def test_nothing_is_sent_or_published() -> None:
    events: list[MessageEvent] = []
    before = len(sent)
    unsubscribe = subscribe(events.append)
    try:
        await render_email("Hello", "Hi")
    finally:
        unsubscribe()
    assert events == []
    assert len(sent) == before


async def test_a_draft_is_marked_as_unsent() -> None:
    rendered = await render_email("Hello", "Hi", recipients=[("Ana", "ana@example.com")], bcc="b@example.com")
    assert rendered.eml() == rendered.content == bytes(rendered)
    draft = email.message_from_bytes(rendered.eml(draft=True), policy=email.policy.default)
    assert (draft["X-Unsent"], draft["To"], draft["Subject"]) == ("1", "Ana <ana@example.com>", "Hello")
    assert draft["Bcc"] is None
    assert b"\n" not in rendered.eml(draft=True).replace(b"\r\n", b"")


async def test_an_address_beyond_ascii_is_readable_in_the_headers() -> None:
    rendered = await render_email("Hello", "Hi", recipients="用户@例え.テスト")
    assert rendered.headers["To"].startswith("用户@")


async def test_mistakes_raise_as_in_a_send() -> None:
    with pytest.raises(InvalidMessage, match="there is no body"):
        await render_email("Hello")
    with pytest.raises(InvalidMessage, match=r"^cc: "):
        await render_email("Hello", "Hi", cc="nobody")
    with pytest.raises(
        TypeError, match=r"^render_email\(\) got an unexpected keyword argument 'body'; did you mean text=\?$"
    ):
        await render_email("Hello", body="Hi")  # type: ignore[call-arg]
    with pytest.raises(ImproperlyConfigured, match="default_sender"), override(EMAIL={"backend": "MemoryBackend"}):
        await render_email("Hello", "Hi")


async def test_blind_recipients_alone_are_undisclosed() -> None:
    rendered = await render_email("Hello", "Hi", bcc="b@example.com")
    assert isinstance(rendered, RenderedEmail)
    assert rendered.headers["To"] == "undisclosed-recipients:;"
