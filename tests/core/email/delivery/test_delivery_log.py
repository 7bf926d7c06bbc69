"""The delivery log: one line for each attempt, with fields, without addresses, and nothing twice."""

import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.mailers import memory_mailer
from support.prepared import make_outgoing
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, EmailSettings, RecipientsRefused, send_email, submit_email
from openviper.core.email.delivery import current_mailer, using_mailer
from openviper.core.email.delivery.last_mile import attempt_delivery, fail_attempt
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.delivery.transport import BackendTransport
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.retry import DispatcherPolicy, QueuePolicy
from openviper.text import without_addresses

FIELDS = ("id", "mode", "mailer", "via", "attempt", "seconds", "code", "ref", "outcome")
RECIPIENT = "user@example.test"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="openviper.email"):
        yield caplog


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, Any]]]:
    """The delivery log's levels, texts and fields."""
    records = [record for record in log.records if record.name == "openviper.email.delivery"]
    return [
        (record.levelname, record.getMessage(), {name: getattr(record, name) for name in FIELDS}) for record in records
    ]


def check_hidden(log: pytest.LogCaptureFixture, *addresses: str) -> None:
    """No line of the delivery log has an address, in its text or in a field."""
    for _, text, fields in lines(log):
        assert not [each for each in addresses if each in text + json.dumps(fields)]


async def test_an_inline_delivery_is_one_line_with_all_fields(log: pytest.LogCaptureFixture) -> None:
    with SmtpServer() as server, override(EMAIL=server.settings(default_sender="shop@example.test")):
        receipt = await submit_email(RECIPIENT, "Hello", text="Hi", ref="order-7")
    ((level, text, fields),) = lines(log)
    assert (level, text) == ("INFO", f"message {receipt.message_id}: delivered")
    assert 0 < fields.pop("seconds") < 600
    assert fields == {
        "id": receipt.message_id,
        "mode": "inline",
        "mailer": "default",
        "via": "default",
        "attempt": 1,
        "code": 250,
        "ref": "order-7",
        "outcome": "delivered",
    }
    check_hidden(log, RECIPIENT)


async def test_an_inline_failure_is_one_line_whose_reason_is_raised(log: pytest.LogCaptureFixture) -> None:
    with SmtpServer() as server, override(EMAIL=server.settings(default_sender="shop@example.test")):
        server.fault("RCPT", f"550 5.1.1 <{RECIPIENT}>: unknown")
        with pytest.raises(RecipientsRefused):
            await send_email(RECIPIENT, "Hello", text="Hi")
    ((level, text, fields),) = lines(log)
    assert level == "INFO"
    assert re.fullmatch(r"message <\S+> was not delivered: RecipientsRefused", text)
    assert (fields["outcome"], fields["code"], fields["attempt"]) == ("failed", 550, 1)
    check_hidden(log, RECIPIENT)


async def test_each_attempt_of_deferred_mail_has_its_line(log: pytest.LogCaptureFixture) -> None:
    """Retried, then given up with the server's words, but not with the addresses in them."""
    with SmtpServer() as server:
        server.fault("RCPT", f"450 4.2.0 <{RECIPIENT}>: later", nth=1)
        server.fault("RCPT", f"550 5.1.1 <{RECIPIENT}>: unknown", nth=2)
        settings = server.settings(default_sender="shop@example.test", retries=1)
        with override(EMAIL=settings):
            outbox = RequestOutbox()
            with collecting(outbox):
                receipt = await submit_email(RECIPIENT, "Hello", text="Hi")
            (delivery,) = outbox.flush()
            mailer = await current_mailer()
            await server.seen("RCPT", 1)
            while not mailer.dispatcher.retry_now(receipt.message_id):
                await server.until(lambda: True)
            await delivery.done
    first, last = lines(log)
    assert first[0] == "WARNING"
    assert "attempt 1 failed, next one in 1 s: 127.0.0.1:" in first[1]
    assert "450 4.2.0 <...@example.test>: later" in first[1]
    assert (first[2]["mode"], first[2]["outcome"], first[2]["code"]) == ("deferred", "retrying", 450)
    assert last[0] == "ERROR"
    assert "550 5.1.1 <...@example.test>: unknown" in last[1]
    assert (last[2]["mode"], last[2]["outcome"], last[2]["code"]) == ("deferred", "failed", 550)
    check_hidden(log, RECIPIENT)
    others = [record.getMessage() for record in log.records if record.name == "openviper.email"]
    assert not [text for text in others if receipt.message_id in text], "the same is logged twice"


@pytest.mark.parametrize(
    ("reply", "level", "outcome", "code"),
    [
        (None, "INFO", "delivered", 250),
        ("450 4.2.0 later", "INFO", "retrying", 450),
        ("550 no", "ERROR", "failed", 550),
    ],
)
async def test_each_outcome_of_queued_mail_has_its_level(
    log: pytest.LogCaptureFixture, reply: str | None, level: str, outcome: str, code: int
) -> None:
    with SmtpServer() as server:
        if reply is not None:
            server.fault("RCPT", reply)
        settings = EmailSettings(**server.settings(default_sender="shop@example.test"))
        transport = BackendTransport(settings)
        await transport.open()
        message, progress = await make_outgoing(), Progress(since=time.time(), attempts=4)
        await attempt_delivery(message, transport, progress, QueuePolicy(settings), mode=DeliveryMode.QUEUED)
        await transport.aclose()
    ((found, _, fields),) = lines(log)
    assert found == level
    assert (fields["mode"], fields["outcome"], fields["code"], fields["attempt"]) == ("queued", outcome, code, 5)
    check_hidden(log, *message.envelope.recipients)


async def test_what_an_earlier_attempt_was_told_names_nobody(log: pytest.LogCaptureFixture) -> None:
    refused = {RECIPIENT: f"550 5.1.1 <{RECIPIENT}>: unknown"}
    progress = Progress(since=time.time(), attempts=1, pending=("ben@example.test",), refused=refused)
    message, policy = await make_outgoing("ben@example.test"), DispatcherPolicy((1.0,))
    with SmtpServer() as server:
        transport = BackendTransport(EmailSettings(**server.settings()))
        await transport.open()
        await attempt_delivery(message, transport, progress, policy, mode=DeliveryMode.DEFERRED)
        await transport.aclose()
    assert "1 recipient refused by an earlier attempt (550 5.1.1 <...@example.test>: unknown)" in log.text
    assert RECIPIENT not in log.text


async def test_an_unexpected_error_shows_its_place_and_names_nobody(log: pytest.LogCaptureFixture) -> None:
    transport = BackendTransport(EmailSettings(backend="MemoryBackend"))
    message, progress, policy = await make_outgoing(), Progress(since=0.0), DispatcherPolicy(())
    try:
        raise RuntimeError(f"no mailbox {RECIPIENT}")
    except RuntimeError as error:
        fail_attempt(message, transport, progress, policy, error, mode=DeliveryMode.DEFERRED)
    assert re.search(r'unexpected RuntimeError\n  File ".*test_delivery_log', log.text)
    ((level, text, fields),) = lines(log)
    assert (level, fields["outcome"]) == ("ERROR", "failed")
    assert text.endswith("RuntimeError: no mailbox ...@example.test")
    assert RECIPIENT not in log.text


async def test_mail_that_nobody_gets_is_suppressed(log: pytest.LogCaptureFixture) -> None:
    with using_mailer(memory_mailer(suppress=lambda addresses, stream: addresses)):
        await send_email(RECIPIENT, "Hello", text="Hi")
    ((level, _, fields),) = lines(log)
    assert (level, fields["outcome"], fields["code"]) == ("INFO", "suppressed", None)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("550 <a.b+c@example.com>: no", "550 <...@example.com>: no"),
        ('"a b"@example.com and ü@[127.0.0.1]', "...@example.com and ...@[127.0.0.1]"),
        ("a@b.example,c@d.example", "...@b.example,...@d.example"),
        ("550 <o'brien@b.example>: no 'd'artagnan'@b.example", "550 <...@b.example>: no '...@b.example"),
        ("no 'a@b.example', 'c@d.example'", "no '...@b.example', '...@d.example'"),
        ("no address, 1 @ 2", "no address, 1 @ 2"),
    ],
)
def test_an_address_is_cut_to_its_domain(text: str, hidden: str) -> None:
    assert without_addresses(text) == hidden


def test_a_message_id_stays_whole() -> None:
    text = "a@b.example was sent <1.x@b.example>, and <1.y@b.example> was not"
    shown = "...@b.example was sent <1.x@b.example>, and <...@b.example> was not"
    assert without_addresses(text, message_id="<1.x@b.example>") == shown
