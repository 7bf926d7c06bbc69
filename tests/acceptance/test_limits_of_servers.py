"""``send_email`` and ``submit_email`` at servers that limit sizes and recipients or refuse some of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, MessageRefused, RecipientsRefused, send_email, submit_email


@contextmanager
def sending_to(server: SmtpServer, **more: Any) -> Iterator[None]:
    with override(EMAIL=server.settings(default_sender="shop@example.com", **more)):
        yield


def addresses(count: int) -> list[str]:
    return [f"r{number}@example.com" for number in range(count)]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("html", "attached", "largest"),
    [
        ("h", 75_000, "attachment 'film.mp4' with 75,000 bytes"),
        ("h" * 95_000, 500, "html with 95,000 bytes"),
    ],
)
async def test_the_encoded_message_counts_and_the_largest_part_is_named_before_mail_from(
    html: str, attached: int, largest: str
) -> None:
    """What is given is smaller than what the server takes, and larger when it is encoded."""
    attachments = [("small.txt", b"x" * 300), ("film.mp4", b"x" * attached)]
    text = "\n".join(["x" * 70] * 60)
    with SmtpServer(capabilities=("SIZE 100000", "PIPELINING", "CHUNKING")) as server, sending_to(server):
        with pytest.raises(MessageRefused, match=r"has 10\d,\d{3} bytes .* at most 100,000 bytes") as raised:
            await send_email("to@example.com", "film", text, html, attachments=attachments)
        assert largest in str(raised.value)
        assert not raised.value.temporary
        assert "MAIL" not in server.verbs
        assert await send_email("to@example.com", "small", text, attachments=attachments[:1])
    assert server.verbs.count("MAIL") == 1


async def test_more_recipients_than_allowed_get_the_same_message_in_several_envelopes() -> None:
    people = addresses(250)
    with SmtpServer() as server, sending_to(server, max_recipients_per_message=100):
        receipt = await submit_email(people[:5], "news", "t", cc=people[5:10], bcc=people[10:])
    assert [len(message.recipients) for message in server.messages] == [100, 100, 50]
    assert len({message.content for message in server.messages}) == 1
    assert {message.parse()["Message-ID"] for message in server.messages} == {receipt.message_id}
    assert list(receipt.accepted) == people


async def test_recipients_that_a_server_answers_with_452_are_in_the_next_envelopes() -> None:
    people = addresses(25)
    with SmtpServer(recipient_limit=10) as server, sending_to(server):
        receipt = await submit_email(people, "news", "t")
    assert [len(message.recipients) for message in server.messages] == [10, 10, 5]
    assert list(receipt.accepted) == people
    assert not receipt.refused


async def test_refused_recipients_are_in_the_receipt_and_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with SmtpServer() as server, sending_to(server, max_recipients_per_message=2):
        server.refuse("r1@example.com", 550)
        server.refuse("r4@example.com", 450)
        receipt = await submit_email(addresses(5), "news", "t")
    assert receipt
    assert receipt.mode is DeliveryMode.INLINE
    assert receipt.accepted == ("r0@example.com", "r2@example.com", "r3@example.com")
    assert {address: refusal.code for address, refusal in receipt.refused.items()} == {
        "r1@example.com": 550,
        "r4@example.com": 450,
    }
    assert warnings_of(caplog) == [f"message {receipt.message_id}: 2 of 5 recipients refused (1 x 450, 1 x 550)"]


@pytest.mark.parametrize("allow_partial", [True, False])
async def test_when_all_are_refused_it_raises_and_nothing_is_sent(allow_partial: bool) -> None:
    with SmtpServer() as server, sending_to(server, allow_partial=allow_partial):
        server.fault("RCPT", 550)
        with pytest.raises(RecipientsRefused) as raised:
            await send_email(addresses(3), "news", "t")
    assert sorted(raised.value.refused) == addresses(3)
    assert not raised.value.temporary
    assert server.messages == []


async def test_without_allow_partial_one_refusal_raises_and_nothing_is_sent() -> None:
    with SmtpServer() as server, sending_to(server, allow_partial=False):
        server.refuse("r1@example.com", 550)
        with pytest.raises(RecipientsRefused, match="1 of 3 recipients refused, nothing was sent") as raised:
            await send_email(addresses(3), "news", "t")
        assert await send_email(["r0@example.com"], "again", "t")
    assert list(raised.value.refused) == ["r1@example.com"]
    assert [message.parse()["Subject"] for message in server.messages] == ["again"]


async def test_silent_failures_carry_the_refusals_in_the_receipt() -> None:
    with SmtpServer() as server, sending_to(server, fail_silently=True):
        server.fault("RCPT", 550)
        receipt = await submit_email(addresses(2), "news", "t")
    assert not receipt
    assert isinstance(receipt.error, RecipientsRefused)
    assert set(receipt.error.refused) == set(addresses(2))
    assert server.messages == []
