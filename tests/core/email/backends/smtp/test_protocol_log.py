"""``EMAIL["protocol_log"]``: the dialogue of the transaction that failed, and nothing of anybody else's."""

import asyncio
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import outgoing
from support.smtpd import CAPABILITIES, SmtpServer

from openviper.core.email import DeliveryMode, EmailSettings, RecipientsRefused
from openviper.core.email.backends import SMTPBackend
from openviper.core.email.backends.smtp.protocol_log import ProtocolLog
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.delivery.last_mile import attempt_delivery
from openviper.core.email.delivery.transport import BackendTransport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue.job import FailedJob, Progress
from openviper.core.email.queue.retry import GiveUp, QueuePolicy

SECRET = b"the body is a secret\r\n"
REFUSAL = "550 5.1.1 <gone@example.com>: unknown"


def message(*to: str) -> OutgoingMessage:
    return outgoing(SECRET, to=to or ("gone@example.com",))


async def failure(server: SmtpServer, capabilities: tuple[str, ...], **more: object) -> str | None:
    server.capabilities = capabilities
    async with SMTPBackend(EmailSettings(**server.settings(**more))) as backend:
        with pytest.raises(RecipientsRefused) as caught:
            await backend.send(message())
    return caught.value.protocol


@pytest.mark.parametrize("capabilities", [CAPABILITIES, ("PIPELINING",), ()], ids=["flight", "pipelining", "stepwise"])
async def test_a_refusal_has_the_dialogue_without_content(capabilities: tuple[str, ...]) -> None:
    with SmtpServer(users={"ana": "very-secret"}) as server:
        server.fault("RCPT", REFUSAL)
        protocol = await failure(server, capabilities, protocol_log=True)
    assert protocol is not None
    lines = protocol.splitlines()
    assert lines[0].startswith("C: MAIL FROM:<...@example.com>")
    assert lines[1:4] == ["S: 250 2.1.0 ok", "C: RCPT TO:<...@example.com>", "S: 550 5.1.1 <...@example.com>: unknown"]
    assert not [word for word in ("secret", "gone", "AUTH", "ana") if word in protocol]


async def test_without_the_setting_nothing_is_recorded() -> None:
    with SmtpServer() as server:
        server.fault("RCPT", REFUSAL)
        assert await failure(server, CAPABILITIES) is None


async def test_only_the_last_transaction_of_a_connection_is_recorded() -> None:
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        async with SMTPBackend(EmailSettings(**server.settings(protocol_log=True, pool_size=1))) as backend:
            assert (await backend.send(message("first@one.example"))).protocol is None
            report = await backend.send(message("second@two.example", "gone@example.com"))
        assert server.connections == 1
    assert report.protocol is not None
    assert "one.example" not in report.protocol
    assert report.protocol.count("RCPT TO:<...@two.example>") == 1
    assert "S: 250" in report.protocol.splitlines()[-1]


async def test_pipelined_messages_have_their_own_dialogues() -> None:
    """Those of others are in flight on the same connection."""
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        gate = server.hold("MAIL", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings(protocol_log=True, pool_size=1))) as backend:
            others = [f"user@host{number}.example" for number in range(8)]
            recipients = [*others[:4], "gone@example.com", *others[4:]]
            sending = [asyncio.create_task(backend.send_pipelined(message(each))) for each in recipients]
            await gate.reached()
            gate.release()
            results = await asyncio.gather(*sending, return_exceptions=True)
    (error,) = [result for result in results if isinstance(result, RecipientsRefused)]
    assert error.protocol is not None
    assert "C: RCPT TO:<...@example.com>\nS: 550" in error.protocol
    assert "host" not in error.protocol
    assert "secret" not in error.protocol


async def test_a_pipelined_message_that_some_refuse_has_its_dialogue() -> None:
    with SmtpServer() as server:
        server.refuse("gone@example.com", 550)
        async with SMTPBackend(EmailSettings(**server.settings(protocol_log=True, pool_size=1))) as backend:
            sending = [
                backend.send_pipelined(message(*to))
                for to in (("a@one.example", "gone@example.com"), ("b@two.example",))
            ]
            partial, whole = await asyncio.gather(*sending)
    assert partial.protocol is not None
    assert "C: RCPT TO:<...@example.com>\nS: 550" in partial.protocol
    assert "two" not in partial.protocol
    assert whole.protocol is None


async def test_it_is_kept_with_a_message_that_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="openviper"), SmtpServer() as server:
        server.fault("RCPT", REFUSAL)
        settings = EmailSettings(**server.settings(protocol_log=True))
        transport = BackendTransport(settings)
        await transport.open()
        progress = Progress(since=time.time(), extra={"trace": "1"})
        decision = await attempt_delivery(
            message(), transport, progress, QueuePolicy(settings), mode=DeliveryMode.QUEUED
        )
        await transport.aclose()
    assert isinstance(decision, GiveUp)
    stored = Progress.from_json(decision.progress.to_json())
    job = FailedJob("<1@example.com>", 0.0, decision.reason, decision.uncertain, stored)
    assert job.protocol is not None
    assert "S: 550 5.1.1 <...@example.com>: unknown" in job.protocol
    assert stored.extra["trace"] == "1"
    assert "RCPT TO:<" not in caplog.text
    assert FailedJob("<1@example.com>", 0.0, "", False, Progress(since=0.0, extra={"protocol": 7})).protocol is None


@given(st.binary(max_size=300), st.integers(0, 200))
def test_content_behind_bdat_is_never_recorded(content: bytes, recipients: int) -> None:
    body = b"secret" + content
    log = ProtocolLog()
    log.record_sent(b"RCPT TO:<a@example.com>\r\n" * recipients + b"BDAT %d LAST\r\n" % len(body) + body)
    for _ in range(recipients):
        log.record_reply(Reply(250, "2.1.5 <a@example.com> " + "x" * 40))
    text = log.text()
    assert len(text) <= 8192
    assert "secret" not in text
    assert "a@" not in text
    assert text.endswith(f"C: BDAT {len(body)} LAST ({len(body)} bytes of content)\nS: (no reply)")
