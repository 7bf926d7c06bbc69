"""Arguments in each other's places: what is said of them, and of which nothing is said."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from openviper.conf import override
from openviper.core.email import Address, render_email, send_email
from openviper.core.email.message.misplaced import is_address_like, misplaced_argument

ANA = "ana@example.com"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "plain.html").write_text("Welcome")
    (tmp_path / "welcome.txt").write_text("Welcome, {{ name }}")
    email = {"backend": "MemoryBackend", "default_sender": "shop@example.com"}
    with override(TEMPLATES_DIR=tmp_path, EMAIL=email):
        yield


@pytest.mark.parametrize("value", [ANA, f"Ana <{ANA}>", f'"Ana, B." <{ANA}>', Address.of("Ana", ANA)])
def test_an_address_is_told(value: object) -> None:
    assert is_address_like(value)


@pytest.mark.parametrize(
    "value", ["Your order", f"Mail from {ANA}", f"{ANA} wrote", f"{ANA}, {ANA}", "50 % @ noon", "a@b", 5, None, [ANA]]
)
def test_other_text_is_no_address(value: object) -> None:
    assert not is_address_like(value)


@pytest.mark.parametrize(
    ("subject", "text", "html", "said"),
    [
        (ANA, "Hi", None, "its subject is an address; the order is send_email(recipients, subject, text), the sender"),
        ("Hi {{ name }}", "Hi", None, "its subject has a variable in {{ }}, which only a template's block 'subject'"),
        (
            "Hi",
            "Hi {{ user.name }}",
            None,
            "its text has a variable in {{ }}, which only a template fills in",
        ),
        ("Hi", None, "<p>{{name}}</p>", "its html has a variable in {{ }}, which only a template fills in: templ"),
        ("Hi", "emails/welcome.html", None, "its text is the name of a file; a template is given as template="),
        ("Hi", None, "welcome.md", "its html is the name of a file; a template is given as template="),
        ("Hi", "<p>Hi</p>", None, "its text is HTML; give it as html="),
        ("Hi", '\n<!DOCTYPE html>\n<html lang="en">', None, "its text is HTML; give it as html="),
        ("Hi", None, "Hello Ana,\nwelcome", "its html has no tag; plain text is given as text="),
    ],
)
def test_a_body_or_subject_in_the_wrong_place_is_named(
    subject: str, text: str | None, html: str | None, said: str
) -> None:
    found = misplaced_argument(subject, text, html)
    assert found is not None
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("subject", "text", "html"),
    [
        ("Mail from ana@example.com", "Hi", None),
        ("{{", "{{ }} and {{ 5 }}", "<p>{{ 5 }}</p>"),
        ("Hi", "a < b", None),
        ("Hi", f"<{ANA}> wrote: <p>", None),
        ("Hi", "<a@example.com> wrote", None),
        ("Hi", "<p>Hi</p>", "<p>Hi</p>"),
        ("Hi", "The file is welcome.html", None),
        ("Hi", "", ""),
        ("Hi", "Hi", "Caf&eacute;"),
        (5, [], {}),
    ],
)
def test_of_all_else_nothing_is_said(subject: object, text: object, html: object) -> None:
    assert misplaced_argument(subject, text, html) is None


async def test_such_a_message_is_sent_and_warned_of_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    assert await send_email(ANA, "Your order", "<p>Secret</p>")
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "openviper.email")
    assert record.getMessage().endswith(">: its text is HTML; give it as html=")
    assert "Secret" not in record.getMessage()


async def test_what_a_template_gives_is_not_doubted(caplog: pytest.LogCaptureFixture) -> None:
    await send_email(ANA, "Welcome", template="plain.html")
    await render_email("Welcome", template="welcome.txt", context={"name": "{{ name }}"})
    assert caplog.records == []
    await send_email(ANA, "Welcome, {{ name }}", template="plain.html")
    assert "its subject has a variable" in caplog.text
