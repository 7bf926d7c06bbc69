"""SMTPBackend against real servers on loopback: envelopes, event loops, uvloop, aiosmtpd."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from support.aiosmtpd_server import aiosmtpd_server
from support.messages import outgoing
from support.smtpd import CAPABILITIES, SmtpServer, Tls

from openviper.core.email.backends import SMTPBackend
from openviper.core.email.errors import (
    ConnectionFailed,
    DeliveryTimeout,
    InvalidAddress,
    MessageRefused,
    RecipientsRefused,
)
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.retry import DispatcherPolicy, Retry, after_attempt
from openviper.core.email.settings import EmailSettings

CONTENT = b"".join(outgoing().content)


def addresses(count: int) -> list[str]:
    return [f"r{number}@example.com" for number in range(count)]


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_a_message_arrives_unchanged(tls: Tls) -> None:
    with SmtpServer(tls=tls, users={"me": "secret"}) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            report = await backend.send(outgoing())
            (received,) = await server.arrive(1)
    assert report.accepted == ("to@example.com",)
    assert report.response == "250 2.0.0 taken"
    assert (received.content, received.user, received.tls) == (CONTENT, "me", tls != "none")


async def test_aiosmtpd_receives_a_message_over_tls_with_auth() -> None:
    with aiosmtpd_server(users={"me": "secret"}) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(outgoing(to=["jörg@example.com"]))
    assert [(mail.recipients, mail.content) for mail in server.messages] == [(["jörg@example.com"], CONTENT)]


# Envelopes


def short_data_timeout(fault: str) -> dict[str, float]:
    """Return settings that shorten a test's wait for a silent server."""
    return {"data_timeout": 1.5} if fault == "silence" else {}


async def test_many_recipients_go_in_several_envelopes_of_the_same_message() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=100))) as backend:
            report = await backend.send(outgoing(to=addresses(250)))
    assert [len(message.recipients) for message in server.messages] == [100, 100, 50]
    assert {message.content for message in server.messages} == {CONTENT}
    assert list(report.accepted) == addresses(250)
    assert not report.refused


@pytest.mark.parametrize("capabilities", [CAPABILITIES, ("PIPELINING",), ()], ids=["chunking", "pipelining", "nothing"])
async def test_recipients_refused_with_452_get_a_further_transaction(capabilities: tuple[str, ...]) -> None:
    with SmtpServer(recipient_limit=30, capabilities=capabilities) as server:
        server.refuse("r7@example.com", 550)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            report = await backend.send(outgoing(to=addresses(250)))
    delivered = [address for message in server.messages for address in message.recipients]
    assert sorted(delivered) == sorted(set(addresses(250)) - {"r7@example.com"})
    assert sorted(report.accepted) == sorted(delivered)
    assert list(report.refused) == ["r7@example.com"]


@pytest.mark.parametrize(
    ("offered", "setting", "sizes"),
    [
        ("LIMITS RCPTMAX=3", 100, [3, 3, 3, 1]),
        ("LIMITS MAILMAX=1 RCPTMAX=4", 100, [4, 4, 2]),
        ("LIMITS RCPTMAX=3", 4, [3, 1, 3, 1, 2]),
        ("LIMITS RCPTMAX=9", 4, [4, 4, 2]),
        ("LIMITS RCPTMAX=many", 100, [10]),
    ],
)
async def test_an_envelope_has_no_more_recipients_than_the_server_announces(
    offered: str, setting: int, sizes: list[int]
) -> None:
    people = [f"to{number}@example.com" for number in range(10)]
    with SmtpServer(capabilities=["PIPELINING", "CHUNKING", offered]) as server:
        settings = EmailSettings(**server.settings(max_recipients_per_message=setting))
        async with SMTPBackend(settings) as backend:
            report = await backend.send(outgoing(to=people))
    assert report.accepted == tuple(people)
    assert [message.recipients for message in server.messages] == [
        people[sum(sizes[:at]) : sum(sizes[: at + 1])] for at in range(len(sizes))
    ]


async def test_an_invalid_address_in_a_later_envelope_is_found_before_the_first_is_sent() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=2))) as backend:
            with pytest.raises(InvalidAddress):
                await backend.send(outgoing(to=[*addresses(5), "a b@example.com"]))
    assert "MAIL" not in server.verbs


async def test_recipients_always_refused_with_452_are_reported_as_refused() -> None:
    with SmtpServer() as server:
        server.refuse("full@example.com", 452)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            report = await backend.send(outgoing(to=["a@example.com", "full@example.com"]))
            with pytest.raises(RecipientsRefused) as raised:
                await backend.send(outgoing(to=["full@example.com"]))
    assert report.accepted == ("a@example.com",)
    assert report.refused["full@example.com"].temporary
    assert raised.value.temporary
    assert [message.recipients for message in server.messages] == [["a@example.com"]]


async def test_an_envelope_whose_recipients_are_all_refused_does_not_stop_the_others() -> None:
    with SmtpServer() as server:
        for address in ("r0@example.com", "r1@example.com"):
            server.refuse(address, 550)
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=2))) as backend:
            report = await backend.send(outgoing(to=addresses(5)))
    assert report.accepted == ("r2@example.com", "r3@example.com", "r4@example.com")
    assert {address: refusal.code for address, refusal in report.refused.items()} == {
        "r0@example.com": 550,
        "r1@example.com": 550,
    }


async def test_all_refused_in_all_envelopes_raises_with_every_reply() -> None:
    with SmtpServer() as server:
        server.fault("RCPT", 550)
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=2))) as backend:
            with pytest.raises(RecipientsRefused) as raised:
                await backend.send(outgoing(to=addresses(5)))
    assert sorted(raised.value.refused) == addresses(5)
    assert (raised.value.code, raised.value.temporary) == (550, False)


@pytest.mark.parametrize(
    ("verb", "fault", "code", "text"),
    [
        ("body", 451, 451, "BDAT: 451"),
        ("body", 554, 554, "BDAT: 554"),
        ("RCPT", 421, 421, "RCPT TO: 421"),
    ],
)
async def test_a_later_envelope_that_fails_is_reported_and_not_raised(
    verb: str, fault: str | int, code: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Report, because a message whose first envelope was delivered must not be sent to all again."""
    with SmtpServer() as server:
        server.fault(verb, fault, nth=2 if verb == "body" else 3)
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=2))) as backend:
            report = await backend.send(outgoing(to=addresses(6)))
    assert report.accepted == ("r0@example.com", "r1@example.com")
    assert set(report.refused) == set(addresses(6)[2:])
    for refusal in report.refused.values():
        assert refusal.code == code
        assert refusal.temporary is (code < 500)
        assert text in refusal.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == f"message <1@example.com>: 4 of 6 recipients refused (4 x {code})"


@pytest.mark.parametrize("fault", ["drop", "reset", "silence", "garbage"])
@pytest.mark.parametrize("send", ["send", "send_pipelined"])
@pytest.mark.parametrize("capabilities", [CAPABILITIES, ("PIPELINING",), ()], ids=["chunking", "pipelining", "nothing"])
async def test_only_the_recipients_of_the_uncertain_envelope_are_uncertain(
    capabilities: tuple[str, ...], send: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Lose the connection, or the server's reply, after the last byte of the second of three envelopes."""
    with SmtpServer(capabilities=capabilities) as server:
        server.fault("body", fault, nth=2)
        server.refuse("r2@example.com", 550)
        settings = EmailSettings(**server.settings(max_recipients_per_message=2, **short_data_timeout(fault)))
        async with SMTPBackend(settings) as backend:
            report = await getattr(backend, send)(outgoing(to=addresses(6)))
    assert report.accepted == ("r0@example.com", "r1@example.com")
    assert [address for address, refusal in report.refused.items() if refusal.uncertain] == ["r3@example.com"]
    assert {address: refusal.code for address, refusal in report.refused.items()} == {
        "r2@example.com": 550,
        "r3@example.com": 451,
        "r4@example.com": 451,
        "r5@example.com": 451,
    }
    assert "may or may not have been accepted" in report.refused["r3@example.com"].text
    assert "not sent" in report.refused["r4@example.com"].text
    assert "perhaps delivered: r3@example.com (451" in report.outcome
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().endswith("4 of 6 recipients refused (3 x 451, 1 x 550); 1 of them may have received it")


@pytest.mark.parametrize("send", ["send", "send_pipelined"])
@pytest.mark.parametrize("fault", ["drop", "silence"])
async def test_an_uncertain_first_envelope_distinguishes_who_may_have_the_message(fault: str, send: str) -> None:
    with SmtpServer() as server:
        server.fault("body", fault, nth=1)
        settings = EmailSettings(**server.settings(max_recipients_per_message=2, **short_data_timeout(fault)))
        async with SMTPBackend(settings) as backend:
            with pytest.raises(ConnectionFailed if fault == "drop" else DeliveryTimeout) as raised:
                await getattr(backend, send)(outgoing(to=addresses(3)))
    error = raised.value
    assert error.uncertain
    assert {address: refusal.uncertain for address, refusal in error.refused.items()} == {
        "r0@example.com": True,
        "r1@example.com": True,
        "r2@example.com": False,
    }
    assert server.verbs.count("body") == 1


async def test_an_error_that_concerns_all_recipients_lists_none_as_refused() -> None:
    with SmtpServer() as server:
        server.fault("body", "drop", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=2))) as backend:
            with pytest.raises(ConnectionFailed) as raised:
                await backend.send(outgoing(to=addresses(2)))
    assert raised.value.uncertain
    assert raised.value.refused == {}


async def test_a_failed_first_envelope_raises_and_later_ones_are_not_sent() -> None:
    with SmtpServer() as server:
        server.fault("MAIL", 550)
        async with SMTPBackend(EmailSettings(**server.settings(max_recipients_per_message=2))) as backend:
            with pytest.raises(MessageRefused):
                await backend.send(outgoing(to=addresses(6)))
    assert server.verbs.count("MAIL") == 1


async def test_without_allow_partial_a_refusal_withholds_only_its_own_envelope() -> None:
    with SmtpServer() as server:
        server.refuse("r3@example.com", 550)
        settings = EmailSettings(**server.settings(max_recipients_per_message=2, allow_partial=False))
        async with SMTPBackend(settings) as backend:
            report = await backend.send(outgoing(to=addresses(6)))
    assert report.accepted == ("r0@example.com", "r1@example.com", "r4@example.com", "r5@example.com")
    assert report.refused["r3@example.com"].code == 550
    assert not report.refused["r2@example.com"].temporary, "a retry would leave r3 out"
    assert "another recipient" in report.refused["r2@example.com"].text


@pytest.mark.parametrize("send", ["send", "send_pipelined"])
async def test_without_allow_partial_no_retry_goes_to_those_beside_a_recipient_refused_for_good(send: str) -> None:
    """Nor to those refused temporarily; an envelope without a permanent refusal is retried as a whole."""
    with SmtpServer() as server:
        server.refuse("r2@example.com", 550)
        server.refuse("r3@example.com", 450)
        server.refuse("r5@example.com", 450)
        settings = EmailSettings(**server.settings(max_recipients_per_message=2, allow_partial=False))
        async with SMTPBackend(settings) as backend:
            report = await getattr(backend, send)(outgoing(to=addresses(6)))
        decision = after_attempt(Progress(since=0.0), report, DispatcherPolicy((1.0,), allow_partial=False), now=0.0)
    assert report.accepted == ("r0@example.com", "r1@example.com")
    assert report.refused["r2@example.com"].code == 550
    assert "450" in report.refused["r3@example.com"].text
    assert isinstance(decision, Retry)
    assert decision.progress.pending == ("r5@example.com", "r4@example.com")


# Opening, closing, event loops


async def test_pool_warm_opens_a_connection_at_startup() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings(pool_warm=True))) as backend:
            assert server.verbs[-1] == "EHLO"
            await backend.send(outgoing())
    assert server.connections == 1


async def test_pool_warm_survives_a_server_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    with SmtpServer() as server:
        server.fault("greeting", 421, nth=1)
        async with SMTPBackend(EmailSettings(**server.settings(pool_warm=True))) as backend:
            assert "pool_warm" in caplog.text
            await backend.send(outgoing())


def test_without_open_the_connections_are_closed_when_the_loop_ends() -> None:
    async def send(backend: SMTPBackend) -> None:
        await backend.send(outgoing())
        assert backend.stats is not None
        assert backend.stats.open == 1

    with SmtpServer() as server:
        backend = SMTPBackend(EmailSettings(**server.settings()))
        for _ in range(2):
            asyncio.run(send(backend))
        server.wait_until(lambda: server.open_connections == 0)
    assert server.connections == 2
    assert server.verbs.count("QUIT") == 2


async def test_closing_an_unused_backend_does_nothing() -> None:
    backend = SMTPBackend(EmailSettings(host="127.0.0.1", port=9))
    assert backend.stats is None
    await backend.aclose()
    await backend.open()
    await backend.aclose()
    await backend.aclose()


async def test_a_server_that_is_down_is_a_connection_failure() -> None:
    with SmtpServer() as server:
        settings = EmailSettings(**server.settings())
    async with SMTPBackend(settings) as backend:
        with pytest.raises(ConnectionFailed) as raised:
            await backend.send(outgoing())
    assert raised.value.temporary


def run_with_uvloop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(main())


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
@pytest.mark.parametrize("capabilities", [CAPABILITIES, ("PIPELINING",), ()], ids=["chunking", "pipelining", "nothing"])
def test_uvloop_sends_small_and_large_messages(tls: Tls, capabilities: tuple[str, ...]) -> None:
    line = b".a line of text\r\n"
    bodies = [line, line * 40_000, line * 700_000]

    async def main() -> None:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            for body in bodies:
                await backend.send(outgoing(body))
            server.fault("MAIL", 421, nth=1)
            await backend.send(outgoing(number=2))
            server.fault("body", "drop", nth=1)
            with pytest.raises(ConnectionFailed) as raised:
                await backend.send(outgoing(number=3))
            assert raised.value.uncertain
            await asyncio.gather(*(backend.send(outgoing(number=number)) for number in range(20)))

    with SmtpServer(tls=tls, capabilities=capabilities, users={"me": "secret"}) as server:
        run_with_uvloop(main)
        assert [message.content[-len(body) :] for message, body in zip(server.messages, bodies, strict=False)] == bodies
        assert len(server.messages) == 24


def test_uvloop_times_out_on_a_silent_server() -> None:
    async def main() -> None:
        async with SMTPBackend(EmailSettings(**server.settings(timeout=2.0, data_timeout=0.5))) as backend:
            with pytest.raises(TimeoutError):
                await backend.send(outgoing())

    with SmtpServer(tls="implicit") as server:
        server.fault("body", "silence")
        run_with_uvloop(main)
