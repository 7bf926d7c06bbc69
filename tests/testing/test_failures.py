"""``fail_with`` raises what ``SMTPBackend`` raises when a real server fails at the same step."""

from collections.abc import Callable
from typing import Any

import pytest
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryError, EmailError, RecipientsRefused, send_email, submit_email
from openviper.testing import Mailbox, capture_mail

Arrange = Callable[[SmtpServer], None]
RECIPIENTS = ["alice@example.com", "gone@example.com"]


def refuse_all(server: SmtpServer) -> None:
    for address in RECIPIENTS:
        server.refuse(address, 451)


FAILURES: list[tuple[Arrange, str, dict[str, Any], dict[str, Any]]] = [
    (lambda server: server.fault("greeting", 554), "554 x", {"at": "connect"}, {}),
    (lambda server: server.fault("greeting", 421), "421 x", {"at": "connect"}, {}),
    (lambda server: server.fault("AUTH", 535), "535 x", {"at": "auth"}, {"username": "u", "password": "p"}),
    (lambda server: server.fault("AUTH", 454), "454 x", {"at": "auth"}, {"username": "u", "password": "p"}),
    (lambda server: server.fault("MAIL", 550), "550 x", {"at": "mail"}, {}),
    (lambda server: server.fault("MAIL", 451), "451 x", {"at": "mail"}, {}),
    (lambda server: server.fault("MAIL", 421), "421 x", {"at": "mail"}, {}),
    (refuse_all, "451 x", {"at": "rcpt"}, {}),
    (
        lambda server: server.refuse("gone@example.com", 550),
        "550 x",
        {"at": "rcpt", "to": "gone@example.com"},
        {"allow_partial": False},
    ),
    (lambda server: server.fault("body", 554), "554 x", {"at": "data"}, {}),
    (lambda server: server.fault("body", 452), "452 x", {"at": "data"}, {}),
    (lambda server: server.fault("body", "drop"), "", {"at": "drop"}, {}),
    (lambda server: server.fault("body", "silence"), "", {"at": "silence"}, {"data_timeout": 0.3}),
]


async def attempt() -> EmailError:
    with pytest.raises(EmailError) as caught:
        await send_email(RECIPIENTS, "Hi", text="Hello")
    return caught.value


def facts(error: EmailError) -> dict[str, Any]:
    assert isinstance(error, DeliveryError)
    found: dict[str, Any] = {
        "class": type(error),
        "temporary": error.temporary,
        "uncertain": error.uncertain,
        "code": error.code,
    }
    if isinstance(error, RecipientsRefused):
        found["accepted"] = error.accepted
        found["refused"] = {address: refusal.code for address, refusal in error.refused.items()}
    return found


@pytest.mark.parametrize(
    ("arrange", "reply", "failing", "settings"),
    FAILURES,
    ids=[f"{failing['at']}-{reply[:3]}" for _, reply, failing, _ in FAILURES],
)
async def test_the_error_is_that_of_a_real_server(
    arrange: Arrange, reply: str, failing: dict[str, Any], settings: dict[str, Any]
) -> None:
    users = {"u": "p"} if "username" in settings else None
    capabilities = ("PIPELINING", "SIZE 1000000", "8BITMIME")  # without CHUNKING the step is DATA
    with SmtpServer(users=users, capabilities=capabilities) as server:
        arrange(server)
        with override(EMAIL={**server.settings(), "default_sender": "orders@shop.example", **settings}):
            real = await attempt()
            with capture_mail() as mailbox, mailbox.fail_with(reply, **failing):
                pretended = await attempt()
    assert facts(pretended) == facts(real)
    text, _, words = str(real).rpartition(": ")
    assert str(pretended).rpartition(": ")[0] == text
    assert reply or str(pretended).endswith(words)


async def test_a_refused_connection_is_that_of_a_port_nobody_listens_on() -> None:
    with SmtpServer() as server:
        settings = {**server.settings(), "default_sender": "orders@shop.example"}
    with override(EMAIL=settings):
        real = await attempt()
        with capture_mail() as mailbox, mailbox.fail_with("refused", at="connect"):
            pretended = await attempt()
    assert facts(pretended) == facts(real)
    assert str(pretended) == str(real)


async def test_one_of_two_refused_recipients_leaves_the_other_one(mailbox: Mailbox) -> None:
    with mailbox.fail_with("550 no such user", at="rcpt", to="gone@example.com"):
        receipt = await submit_email(RECIPIENTS, "Hi", text="Hello")
    assert receipt.accepted == ("alice@example.com",)
    assert {address: str(refusal) for address, refusal in receipt.refused.items()} == {
        "gone@example.com": "550 no such user"
    }
    assert mailbox.last.recipients == ("alice@example.com",)


async def test_fail_silently_returns_false(mailbox: Mailbox) -> None:
    mailbox.fail_with("550 no")
    assert await send_email("alice@example.com", "Hi", text="Hello", fail_silently=True) is False


async def test_as_many_attempts_fail_as_asked_for(mailbox: Mailbox) -> None:
    mailbox.fail_with("451 later", at="mail", times=2)
    sent = [await send_email("alice@example.com", "Hi", text="Hello", fail_silently=True) for _ in range(3)]
    assert sent == [False, False, True]


@pytest.mark.parametrize(
    ("reply", "options", "text"),
    [
        ("451 later", {"at": "rctp"}, "no step 'rctp'"),
        ("250 fine", {"at": "data"}, "'250 fine' is not a refusal"),
        ("250 fine", {"at": "connect"}, "'250 fine' is not a refusal"),
        ("later", {"at": "rcpt"}, "'later' is not a refusal"),
        ("451 later", {"at": "data", "to": "a@example.com"}, 'only at="rcpt"'),
        ("451 later", {"times": 0}, "1 or more"),
    ],
)
def test_a_failure_that_cannot_be_is_refused(mailbox: Mailbox, reply: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        mailbox.fail_with(reply, **options)
