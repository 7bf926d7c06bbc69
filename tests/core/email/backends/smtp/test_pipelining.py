"""Pipelined messages: many in flight on one connection, and the right outcome for each when something fails."""

import asyncio
import contextlib
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from support.messages import outgoing
from support.patience import PATIENCE, shown_in_time
from support.postfix import Postfix
from support.rawserver import Peer, greet, raw_server
from support.smtpd import ReceivedMessage, SmtpServer, Tls

from openviper.core.email.backends import DeliveryReport, SMTPBackend
from openviper.core.email.backends.smtp.pipelining import PipelinedSender
from openviper.core.email.backends.smtp.pool import ConnectionPool
from openviper.core.email.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    EmailError,
    InvalidMessage,
    MessageRefused,
    PoolTimeout,
    RecipientsRefused,
)
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

Outcome = DeliveryReport | EmailError


def numbered(count: int, *, filling: bytes = b"") -> list[OutgoingMessage]:
    """Return messages that name their recipient, so that a misdelivered one is seen."""
    return [
        outgoing(b"number %d.\r\n" % number + filling, to=[f"to{number}@example.com"], number=number)
        for number in range(count)
    ]


async def send_all(backend: SMTPBackend, messages: Sequence[OutgoingMessage]) -> list[Outcome]:
    outcomes = await asyncio.gather(*map(backend.send_pipelined, messages), return_exceptions=True)
    for outcome in outcomes:
        if not isinstance(outcome, DeliveryReport | EmailError):
            raise outcome
    return outcomes  # type: ignore[return-value]


@asynccontextmanager
async def backend_for(server: SmtpServer, **more: object) -> AsyncIterator[SMTPBackend]:
    async with SMTPBackend(EmailSettings(**server.settings(**{"pool_size": 1} | more))) as backend:
        yield backend


@asynccontextmanager
async def raw_backend(converse: Callable[[Peer], Awaitable[None]], **more: Any) -> AsyncIterator[SMTPBackend]:
    async with (
        raw_server(converse, **more) as port,
        SMTPBackend(EmailSettings(host="127.0.0.1", port=port, pool_size=1)) as backend,
    ):
        yield backend


def number_of(content: bytes) -> int:
    found = re.search(rb"^number (\d+)\.\r?$", content, re.MULTILINE)
    assert found is not None
    return int(found[1])


def check(messages: Sequence[ReceivedMessage], outcomes: Sequence[Outcome]) -> Counter[int]:
    """Check that each message went to its own recipient, as often as its outcome says; return the counts."""
    arrived: Counter[int] = Counter()
    for message in messages:
        number = number_of(message.content)
        assert message.recipients == [f"to{number}@example.com"]
        arrived[number] += 1
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, DeliveryReport):
            assert arrived[number] == 1, number
        elif isinstance(outcome, DeliveryError) and outcome.uncertain:
            assert arrived[number] <= 1, number
        else:
            assert arrived[number] == 0, number
    return arrived


async def all_released(backend: SMTPBackend) -> None:
    """Wait until every open connection is idle and no sender waits."""
    async with asyncio.timeout(PATIENCE):
        while (stats := backend.stats) is None or stats.open != stats.idle or stats.waiting:
            await asyncio.sleep(0.01)


async def test_stats_count_the_messages_that_wait_for_a_connection() -> None:
    with SmtpServer() as server:
        gate = server.hold("greeting", nth=1)
        async with backend_for(server) as backend:
            small, large = numbered(30), numbered(3, filling=b"x\r\n" * 100_000)
            sending = [asyncio.create_task(backend.send_pipelined(message)) for message in (*small, *large)]
            await gate.reached()
            assert backend.stats is not None
            assert (backend.stats.open, backend.stats.waiting) == (0, 33)
            gate.release()
            await asyncio.gather(*sending)
            await all_released(backend)


def of_kind(outcomes: Sequence[Outcome], kind: type[EmailError]) -> list[int]:
    return [number for number, outcome in enumerate(outcomes) if isinstance(outcome, kind)]


def uncertain(outcomes: Sequence[Outcome]) -> list[int]:
    return [n for n, outcome in enumerate(outcomes) if isinstance(outcome, DeliveryError) and outcome.uncertain]


# What goes out when


async def read_flight(peer: Peer) -> int:
    """Read the next flight and return its message's number."""
    assert await peer.line() == b"RSET"
    assert (await peer.line()).startswith(b"MAIL FROM:")
    assert (await peer.line()).startswith(b"RCPT TO:")
    verb, length, last = (await peer.line()).split()
    assert (verb, last) == (b"BDAT", b"LAST")
    return number_of(await peer.exactly(int(length)))


async def accept_probe(peer: Peer) -> None:
    await greet(peer, "PIPELINING", "CHUNKING")
    assert await peer.line() == b"RSET"
    await peer.nothing_comes()
    await peer.say(b"250 reset")


async def test_twenty_messages_are_in_flight_without_a_reply() -> None:
    async def converse(peer: Peer) -> None:
        await accept_probe(peer)
        assert [await read_flight(peer) for _ in range(20)] == list(range(20))
        await peer.nothing_comes()
        await peer.say(*[b"250 reset", b"250 sender", b"250 recipient", b"250 taken"] * 20)
        assert [await read_flight(peer) for _ in range(10)] == list(range(20, 30))
        await peer.say(*[b"250 reset", b"250 sender", b"250 recipient", b"250 taken"] * 10)

    async with raw_backend(converse) as backend:
        outcomes = await send_all(backend, numbered(30))
    assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)


async def test_the_bytes_in_flight_are_limited() -> None:
    async def converse(peer: Peer) -> None:
        await accept_probe(peer)
        for first in range(0, 9, 2):
            assert [await read_flight(peer) for _ in range(2)] == [first, first + 1]
            await peer.nothing_comes()
            await peer.say(*[b"250 reset", b"250 sender", b"250 recipient", b"250 taken"] * 2)

    messages = numbered(10, filling=(b"x" * 76 + b"\r\n") * 1300)
    async with raw_backend(converse) as backend:
        assert all(isinstance(outcome, DeliveryReport) for outcome in await send_all(backend, messages))


async def test_without_rset_messages_are_sent_one_by_one() -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        assert await peer.line() == b"RSET"
        await peer.say(b"502 no such command")
        for number in range(3):
            assert (await peer.line()).startswith(b"MAIL FROM:")
            assert (await peer.line()).startswith(b"RCPT TO:")
            assert number_of(await peer.exactly(int((await peer.line()).split()[1]))) == number
            await peer.nothing_comes()
            await peer.say(b"250 sender", b"250 recipient", b"250 taken")

    async with raw_backend(converse) as backend:
        assert all(isinstance(outcome, DeliveryReport) for outcome in await send_all(backend, numbered(3)))


@pytest.mark.parametrize("capabilities", [("PIPELINING", "SIZE 100000000"), ("CHUNKING",), ()])
async def test_without_both_extensions_messages_are_sent_one_by_one(capabilities: Sequence[str]) -> None:
    with SmtpServer(capabilities=capabilities) as server:
        async with backend_for(server, pool_size=2) as backend:
            outcomes = await send_all(backend, numbered(50))
    assert sum(check(server.messages, outcomes).values()) == 50
    assert "RSET" not in server.verbs
    assert server.connections <= 2


@pytest.mark.parametrize("settings", [{"one_flight": False}, {"allow_partial": False}], ids=str)
async def test_settings_that_forbid_one_flight_forbid_pipelining(settings: dict[str, bool]) -> None:
    with SmtpServer() as server:
        async with backend_for(server, **settings) as backend:
            for _ in range(2):
                await backend.send_pipelined(outgoing(to=["a@example.com", "b@example.com"]))
    assert "RSET" not in server.verbs


async def test_large_messages_are_sent_one_by_one_between_small_ones() -> None:
    messages = numbered(30)
    messages[3:20:4] = [
        outgoing(b"number %d.\r\n" % n + b"x" * 76 * 4000 + b"\r\n", to=[f"to{n}@example.com"]) for n in range(3, 20, 4)
    ]
    with SmtpServer() as server:
        async with backend_for(server) as backend:
            assert sum(check(server.messages, await send_all(backend, messages)).values()) == 30
    assert server.connections == 1


async def test_several_connections_share_many_messages_and_few_use_one() -> None:
    with SmtpServer() as server:
        gate = server.hold("body")
        async with backend_for(server, pool_size=3) as backend:
            sending = asyncio.ensure_future(send_all(backend, numbered(60)))
            await server.seen("body", 3)
            gate.release()
            await sending
    assert server.connections == 3
    with SmtpServer() as server:
        async with backend_for(server, pool_size=3) as backend:
            await send_all(backend, numbered(20))
    assert server.connections == 1


async def test_a_connection_is_replaced_after_max_messages_per_connection() -> None:
    with SmtpServer() as server:
        async with backend_for(server, max_messages_per_connection=30) as backend:
            check(server.messages, await send_all(backend, numbered(100)))
    assert [count for _, count in sorted(Counter(m.connection for m in server.messages).items())] == [30, 30, 30, 10]


async def test_a_plain_send_is_served_between_pipelined_ones() -> None:
    with SmtpServer() as server:
        gate = server.hold("body", nth=6)
        async with backend_for(server, max_messages_per_connection=10_000) as backend:
            sending = asyncio.ensure_future(send_all(backend, numbered(200)))
            await gate.reached()
            ordinary = asyncio.create_task(backend.send(outgoing(b"number 1000.\r\n")))
            await asyncio.sleep(0)  # it waits for a connection now
            gate.release()
            await ordinary
            place = [number_of(message.content) for message in server.messages].index(1000)
            await sending
    assert place < 100


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_messages_are_pipelined_over_tls(tls: Tls) -> None:
    with SmtpServer(tls=tls) as server:
        async with backend_for(server) as backend:
            assert sum(check(server.messages, await send_all(backend, numbered(60))).values()) == 60
    assert server.connections == 1


def test_messages_are_pipelined_on_uvloop() -> None:
    async def main(server: SmtpServer) -> list[Outcome]:
        async with backend_for(server) as backend:
            return await send_all(backend, numbered(60))

    with SmtpServer() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert sum(check(server.messages, runner.run(main(server))).values()) == 60


async def test_the_rate_limit_applies_to_pipelined_messages() -> None:
    with SmtpServer() as server:
        async with backend_for(server, rate_limit="10/second") as backend:
            started = time.monotonic()
            await send_all(backend, numbered(15))
    assert time.monotonic() - started > 0.35  # ten tokens may be saved


@pytest.mark.parametrize("how", ["in a subclass", "in a mixin"])
async def test_a_subclass_with_its_own_send_is_not_bypassed(how: str) -> None:
    class Mixin:
        async def send(self, message: OutgoingMessage) -> DeliveryReport:
            return DeliveryReport(accepted=("nobody",))

    class Mixed(Mixin, SMTPBackend):
        pass

    class Derived(SMTPBackend):
        async def send(self, message: OutgoingMessage) -> DeliveryReport:
            return DeliveryReport(accepted=("nobody",))

    class Both(Derived):
        async def send_pipelined(self, message: OutgoingMessage) -> DeliveryReport:
            return await self.send(message)

        supports_pipelining = True

    assert SMTPBackend.supports_pipelining
    assert not (Mixed if how == "in a mixin" else Derived).supports_pipelining
    assert Both.supports_pipelining


# Refusals


async def test_a_refused_message_does_not_affect_others() -> None:
    with SmtpServer() as server:
        server.refuse("to3@example.com", 550)
        server.fault("MAIL", 552, nth=6)
        server.fault("BDAT", 554, nth=9)
        server.fault("body", 451, nth=11)
        async with backend_for(server) as backend:
            outcomes = await send_all(backend, numbered(20))
            assert backend.stats is not None
            assert (backend.stats.sent, backend.stats.reconnects) == (16, 0)
    check(server.messages, outcomes)
    assert of_kind(outcomes, RecipientsRefused) == [3]
    assert len(of_kind(outcomes, MessageRefused)) == 3
    assert uncertain(outcomes) == []
    assert server.connections == 1


async def test_after_a_refusal_a_plain_send_begins_with_rset() -> None:
    """End the transaction, which a refused BDAT leaves open, by RSET before the next."""
    with SmtpServer() as server:
        server.fault("BDAT", 451, nth=1)
        async with backend_for(server) as backend:
            with pytest.raises(MessageRefused):
                await backend.send_pipelined(numbered(1)[0])
            await backend.send(outgoing(b"number 1.\r\n", to=["to1@example.com"]))
    assert [message.recipients for message in server.messages] == [["to1@example.com"]]


async def test_a_message_out_of_sequence_because_of_another_is_sent_again() -> None:
    async def converse(peer: Peer) -> None:
        await accept_probe(peer)
        assert [await read_flight(peer) for _ in range(3)] == [0, 1, 2]
        await peer.say(b"250 reset", b"250 sender", b"250 recipient", b"451 no space")
        await peer.say(b"250 reset", b"503 nested MAIL", b"503 not now", b"503 not now")
        await peer.say(b"250 reset", b"250 sender", b"250 recipient", b"250 taken")
        assert (await peer.line()).startswith(b"MAIL FROM:")
        await peer.line()
        assert number_of(await peer.exactly(int((await peer.line()).split()[1]))) == 1
        await peer.say(b"250 sender", b"250 recipient", b"250 taken again")

    async with raw_backend(converse) as backend:
        refused, again, taken = await send_all(backend, numbered(3))
    assert isinstance(refused, MessageRefused)
    assert isinstance(again, DeliveryReport)
    assert again.response == "250 taken again"
    assert isinstance(taken, DeliveryReport)


async def test_content_accepted_for_unknown_recipients_is_uncertain() -> None:
    """Refuse the second RSET and MAIL, so that RCPT adds to the first transaction, and accept the content."""
    conversations = 0

    async def converse(peer: Peer) -> None:
        nonlocal conversations
        conversations += 1
        assert conversations == 1
        await accept_probe(peer)
        assert [await read_flight(peer) for _ in range(2)] == [0, 1]
        await peer.say(b"250 reset", b"250 sender", b"250 recipient", b"451 no space")
        await peer.say(b"451 not now", b"503 nested MAIL", b"250 recipient", b"250 taken")
        assert await peer.reader.read(1) == b""  # nothing more is sent on this connection

    async with raw_backend(converse) as backend:
        first, second = await send_all(backend, numbered(2))
    assert isinstance(first, MessageRefused)
    assert isinstance(second, ConnectionFailed)
    assert second.uncertain


async def test_after_a_refused_rset_nothing_further_is_sent_on_the_connection() -> None:
    """Interpret the replies to what was written already as usual."""
    connections = 0

    async def converse(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await accept_probe(peer)
        if connections == 1:
            assert [await read_flight(peer) for _ in range(2)] == [0, 1]
            await peer.say(b"451 not now", b"250 sender", b"250 recipient", b"250 taken")
            await peer.say(b"451 not now", b"451 not now", b"451 not now", b"451 not now")
            assert await peer.reader.read(1) == b""
        else:
            assert await read_flight(peer) == 0
            await peer.say(b"250 reset", b"250 sender", b"250 recipient", b"250 taken")

    async def converse_alone(peer: Peer) -> None:
        if connections != 1:
            await converse(peer)
            return
        await greet(peer, "PIPELINING", "CHUNKING")
        for _ in range(2):
            await peer.line()
        assert number_of(await peer.exactly(int((await peer.line()).split()[1]))) == 1
        await peer.say(b"250 sender", b"250 recipient", b"250 taken alone")
        await peer.reader.read()

    async with raw_backend(converse_alone) as backend:
        first, second = await send_all(backend, numbered(2))
    assert isinstance(first, DeliveryReport)
    assert isinstance(second, DeliveryReport)
    assert second.response == "250 taken alone"


async def test_invalid_content_fails_alone() -> None:
    messages = numbered(5)
    messages[2] = outgoing(b"a bare\rreturn\r\n", to=["to2@example.com"])
    with SmtpServer() as server:
        async with backend_for(server) as backend:
            outcomes = await send_all(backend, messages)
    assert of_kind(outcomes, InvalidMessage) == [2]
    assert len(server.messages) == 4


# A connection that is lost


VERBS = ["RSET", "MAIL", "RCPT", "BDAT", "body"]


@pytest.mark.parametrize("action", ["drop", "reset", "garbage", 421])
@pytest.mark.parametrize("verb", VERBS)
async def test_every_outcome_is_right_when_the_connection_ends_at(verb: str, action: str | int) -> None:
    """Fail in the second twenty messages, at each step of the 25th."""
    with SmtpServer() as server:
        server.fault(verb, action, nth=26 if verb == "RSET" else 25)
        async with backend_for(server, max_messages_per_connection=1000) as backend:
            outcomes = await send_all(backend, numbered(60))
            await all_released(backend)
    arrived = check(server.messages, outcomes)
    lost = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, DeliveryReport)]
    if action == 421:
        # The server has not read the commands behind 421; they are sent again.
        assert lost == ([24] if verb in ("RCPT", "BDAT", "body") else [])
        assert uncertain(outcomes) == []
    else:
        assert lost == uncertain(outcomes)
        assert 24 in lost
        assert len(lost) <= 20
        # Closing with unread commands resets the connection, which destroys replies in transit.
        assert set(lost) <= set(range(24 if action == "garbage" else 5, 44))
    if action != "garbage":  # after which the server goes on with the commands it has read
        assert set(arrived) >= set(range(60)) - set(lost)
    assert server.connections == 2


@pytest.mark.parametrize("action", ["drop", "reset", "garbage", "silence", 421, 502, 451])
@pytest.mark.parametrize("verb", VERBS)
async def test_every_outcome_is_right_when_the_first_message_meets_a_fault(verb: str, action: str | int) -> None:
    async def show(limit: float) -> None:
        with SmtpServer() as server:
            server.fault(verb, action, nth=1)
            async with backend_for(server, timeout=limit, data_timeout=limit) as backend:
                outcomes = await send_all(backend, numbered(30))
                await all_released(backend)
        check(server.messages, outcomes)
        if verb == "RSET":  # with nothing behind it
            assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)
        assert sum(isinstance(outcome, DeliveryReport) for outcome in outcomes) >= 10

    await (shown_in_time(show) if action == "silence" else show(2 * PATIENCE))


async def test_cancelled_messages_do_not_affect_others() -> None:
    """Cancel one of two senders that share a connection while its messages have no reply."""
    with SmtpServer() as server:
        gate = server.hold("body")
        async with backend_for(server) as backend:
            messages = numbered(16)
            leaving = [asyncio.create_task(backend.send_pipelined(message)) for message in messages[::2]]
            staying = [asyncio.create_task(backend.send_pipelined(message)) for message in messages[1::2]]
            await server.seen("body")
            for task in leaving:
                task.cancel()
            later = asyncio.create_task(backend.send_pipelined(outgoing(b"number 99.\r\n", to=["to99@example.com"])))
            await asyncio.sleep(0.05)
            gate.release()
            assert all(await asyncio.gather(*staying, later))
            assert all(
                isinstance(one, asyncio.CancelledError)
                for one in await asyncio.gather(*leaving, return_exceptions=True)
            )
            await all_released(backend)
    arrived = check(server.messages, [])
    assert max(arrived.values()) == 1
    # The connection with the cancelled messages was not used again.
    assert {message.connection for message in server.messages if number_of(message.content) == 99} == {2}


async def test_a_message_cancelled_as_it_is_assigned_frees_its_reservation() -> None:
    with SmtpServer() as server:
        gate = server.hold("body")
        async with backend_for(server) as backend:
            messages = numbered(22)

            async def send_first() -> None:
                await backend.send_pipelined(messages[0])
                last.cancel()  # it has just been assigned the reservation of this one

            first = asyncio.create_task(send_first())
            others = [asyncio.create_task(backend.send_pipelined(message)) for message in messages[1:20]]
            last = asyncio.create_task(backend.send_pipelined(messages[20]))
            await server.seen("body")
            gate.release()
            await asyncio.gather(first, *others)
            with pytest.raises(asyncio.CancelledError):
                await last
            await all_released(backend)
            assert backend.stats is not None
            assert backend.stats.idle == 1  # no byte of it was written


async def test_a_message_of_which_no_byte_was_written_is_sent_again() -> None:
    """Write to a connection whose reset the event loop has not seen yet."""
    with SmtpServer() as server:
        server.fault("body", "reset", nth=1)
        async with backend_for(server) as backend:
            first = asyncio.create_task(backend.send_pipelined(numbered(1)[0]))
            await asyncio.sleep(0)
            while not server.verbs.count("body"):
                await asyncio.sleep(0.001)
                time.sleep(0.05)  # the reset arrives while the loop is busy
                if server.verbs.count("body") and not first.done():
                    server.wait_until(lambda: server.open_connections == 0)
                    time.sleep(0.05)  # and the system records it
                    break
            second = await backend.send_pipelined(numbered(2)[1])
            (broken,) = await asyncio.gather(first, return_exceptions=True)
    assert isinstance(broken, DeliveryError)
    outcomes: list[DeliveryReport | EmailError] = [broken, second]
    check(server.messages, outcomes)
    assert uncertain(outcomes) == [0]


async def test_a_connection_that_was_silent_is_checked_before_use() -> None:
    """Replace it if it was lost silently, and pipeline on the new one."""
    with SmtpServer() as server:
        async with backend_for(server) as backend:
            await send_all(backend, numbered(10))
            asked = server.verbs.count("RSET")
            server.fault("RSET", "drop", nth=1)
            await asyncio.sleep(1.05)
            outcomes = await send_all(backend, numbered(30)[10:])
    assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)
    resets = Counter(command.connection for command in server.commands if command.verb == "RSET")
    assert resets.keys() == {1, 2}
    assert resets[1] == asked + 1
    assert resets[2] >= 21  # one check, and another if this process stalls for a second


async def test_a_further_connection_that_cannot_be_opened_delays_no_message() -> None:
    with SmtpServer(connection_limit=1) as server:
        server.delay("body", 0.01)
        pool = ConnectionPool(EmailSettings(**server.settings(pool_size=2)), acquire_timeout=0.1)
        while not pool.stats.idle:
            with contextlib.suppress(PoolTimeout):  # on a machine that takes longer to connect
                await pool.warm()
        sender = PipelinedSender(pool, connections=2)
        outcomes = await asyncio.gather(*map(sender.send, numbered(60)))
        await pool.aclose()
    assert len(outcomes) == len(server.messages) == 60
    assert server.verbs.count("RSET") == 61


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize(("verb", "action"), [("greeting", 421), ("connect", "drop"), ("RSET", 421), ("MAIL", 421)])
async def test_a_server_that_allows_fewer_connections_costs_no_message(
    limit: int, verb: str, action: int | str
) -> None:
    """Send 200 messages at once over a cold pool of five connections."""
    with SmtpServer(connection_limit=limit, limit_at=verb, limit_action=action) as server:
        server.delay("greeting" if verb in ("greeting", "connect") else verb, 0.02)  # of those within the limit
        server.delay("body", 0.002)
        async with backend_for(server, pool_size=5) as backend:
            outcomes = await send_all(backend, numbered(200))
            await all_released(backend)
    assert sum(check(server.messages, outcomes).values()) == 200
    assert server.most_admitted <= limit


async def test_a_wrong_password_is_one_failed_login_for_all_messages() -> None:
    with SmtpServer(users={"me": "right"}) as server:
        async with backend_for(server, pool_size=5, password="wrong") as backend:
            outcomes = await send_all(backend, numbered(100))
    assert of_kind(outcomes, AuthenticationFailed) == list(range(100))
    assert len({id(outcome) for outcome in outcomes}) == 100
    assert server.verbs.count("AUTH") == 1


async def test_a_message_cancelled_as_it_fails_is_cancelled() -> None:
    with SmtpServer() as server:
        server.fault("greeting", 554)
        async with backend_for(server) as backend:
            messages = numbered(3)

            async def send_first() -> None:
                with contextlib.suppress(ConnectionFailed):
                    await backend.send_pipelined(messages[0])
                last.cancel()  # it has just been given the same error

            first = asyncio.create_task(send_first())
            last = asyncio.create_task(backend.send_pipelined(messages[1]))
            await first
            with pytest.raises(asyncio.CancelledError):
                await last


async def test_elders_of_a_connection_that_was_lost_without_a_word_are_not_asked() -> None:
    async def show(limit: float) -> None:
        with SmtpServer() as server:
            async with backend_for(server, pool_size=3, timeout=limit) as backend:
                gate = server.hold("body")
                sending = asyncio.ensure_future(send_all(backend, numbered(60)))
                await server.seen("body", 3)
                gate.release()
                await sending
                await all_released(backend)
                await asyncio.sleep(1.05)
                server.fault("RSET", "silence", nth=1)
                before = server.verbs.count("RSET")
                outcomes = await send_all(backend, numbered(70)[60:])
        assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)
        assert {message.connection for message in server.messages[60:]} == {4}
        assert server.verbs.count("RSET") == before + 12  # one without a reply, one check, and one for each message

    await shown_in_time(show)


@pytest.mark.parametrize("code", [500, 502, 503])
async def test_a_server_that_refuses_bdat_as_unknown_gets_data(code: int) -> None:
    with SmtpServer() as server:
        server.fault("BDAT", code)
        async with backend_for(server, pool_size=2) as backend:
            assert sum(check(server.messages, await send_all(backend, numbered(60))).values()) == 60
            before = server.verbs.count("BDAT")
            await send_all(backend, numbered(60))
    assert server.verbs.count("BDAT") == before
    assert {message.via for message in server.messages} == {"DATA"}


@pytest.mark.parametrize("ending", [b"500 unknown command", b"221 I can break rules, too"], ids=["goes on", "leaves"])
@pytest.mark.parametrize("lines", [0, 1, 2, 3])
async def test_replies_to_content_read_as_commands_are_not_taken_for_replies_to_messages(
    ending: bytes, lines: int
) -> None:
    """Answer each line behind BDAT, as a proxy does that does not know it; envelopes differ in length."""
    stored: Counter[int] = Counter()

    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        while True:
            line = await peer.line()
            if line == b"DATA":
                await peer.say(b"354 go ahead")
                stored[number_of(await peer.until(b"\r\n.\r\n"))] += 1
                await peer.say(b"250 taken")
            elif line.startswith((b"MAIL", b"RCPT", b"RSET")):
                await peer.say(b"250 ok")
            elif line.startswith(b"BDAT"):
                await peer.say(b"502 unknown command")
            else:
                await peer.say(ending)
                if ending.startswith(b"221"):
                    return

    messages = [
        outgoing(b"number %d.\r\n" % n + b"more\r\n" * lines, to=[f"{k}@example.com" for k in range(1 + n % 9)])
        for n in range(30)
    ]
    async with raw_backend(converse) as backend:
        outcomes = await send_all(backend, messages)
    assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)
    assert stored == Counter(range(30))


async def test_a_connection_carries_no_more_messages_than_the_server_announces() -> None:
    with SmtpServer(capabilities=["PIPELINING", "CHUNKING", "LIMITS MAILMAX=15"]) as server:
        server.refuse("to3@example.com", 550)
        async with backend_for(server) as backend:
            outcomes = await send_all(backend, numbered(50))
    assert of_kind(outcomes, RecipientsRefused) == [3]
    assert max(Counter(c.connection for c in server.commands if c.verb == "MAIL").values()) == 15
    assert server.connections == 4


async def test_an_envelope_has_no_more_recipients_than_the_server_announces() -> None:
    people = [f"to{number}@example.com" for number in range(8)]
    with SmtpServer(capabilities=["PIPELINING", "CHUNKING", "LIMITS RCPTMAX=3"]) as server:
        async with backend_for(server) as backend:
            report = await backend.send_pipelined(outgoing(to=people))
    assert report.accepted == tuple(people)
    assert [len(message.recipients) for message in server.messages] == [3, 3, 2]


async def test_messages_that_wait_when_the_backend_closes_fail() -> None:
    with SmtpServer() as server:
        gate = server.hold("body")
        async with backend_for(server) as backend:
            sending = asyncio.ensure_future(send_all(backend, numbered(60)))
            await server.seen("body")
            asyncio.get_running_loop().call_later(0.2, gate.release)
            await backend.aclose()
            outcomes = await sending
    check(server.messages, outcomes)
    assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes[:20])
    assert of_kind(outcomes, ConnectionFailed) == list(range(20, 60))


async def test_a_server_that_falls_silent_leaves_the_rest_uncertain() -> None:
    async def show(limit: float) -> None:
        with SmtpServer() as server:
            server.fault("MAIL", "silence", nth=25)
            async with backend_for(server, timeout=limit) as backend:
                outcomes = await send_all(backend, numbered(60))
        check(server.messages, outcomes)
        assert 24 in uncertain(outcomes)
        assert len(uncertain(outcomes)) <= 20

    await shown_in_time(show)


async def test_refusals_that_arrive_before_the_connection_ends_are_refusals() -> None:
    async def converse(peer: Peer) -> None:
        if peers.append(peer) or len(peers) > 1:  # type: ignore[func-returns-value]
            return
        await accept_probe(peer)
        assert [await read_flight(peer) for _ in range(4)] == [0, 1, 2, 3]
        await peer.say(b"250 reset", b"250 sender", b"250 recipient", b"250 taken")
        await peer.say(b"250 reset", b"250 sender", b"550 no such user")  # and nothing more

    peers: list[Peer] = []
    async with raw_backend(converse) as backend:
        outcomes = await send_all(backend, numbered(4))
    assert isinstance(outcomes[0], DeliveryReport)
    assert of_kind(outcomes, RecipientsRefused) == [1]
    assert uncertain(outcomes) == [2, 3]


async def send_over(*peers: Callable[[Peer], Awaitable[None]], count: int) -> list[Outcome]:
    """Send ``count`` messages; the first connection is served by the first of ``peers`` and so on."""
    left = list(peers)

    async def converse(peer: Peer) -> None:
        await left.pop(0)(peer)

    async with raw_backend(converse) as backend:
        return await send_all(backend, numbered(count))


def accepts_one(number: int) -> Callable[[Peer], Awaitable[None]]:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        assert [(await peer.line())[:4] for _ in range(2)] == [b"MAIL", b"RCPT"]
        assert number_of(await peer.exactly(int((await peer.line()).split()[1]))) == number
        await peer.say(b"250 sender", b"250 recipient", b"250 taken")

    return converse


async def test_a_refusal_before_421_is_a_refusal() -> None:
    async def leave(peer: Peer) -> None:
        await accept_probe(peer)
        assert [await read_flight(peer) for _ in range(2)] == [0, 1]
        await peer.say(b"250 reset", b"550 not from you", b"421 leaving")

    refused, taken = await send_over(leave, accepts_one(1), count=2)
    assert isinstance(refused, MessageRefused)
    assert (refused.code, refused.temporary) == (550, False)
    assert isinstance(taken, DeliveryReport)


async def test_a_message_out_of_sequence_before_421_is_sent_again() -> None:
    async def leave(peer: Peer) -> None:
        await accept_probe(peer)
        assert await read_flight(peer) == 0
        await peer.say(b"250 reset", b"503 nested MAIL", b"421 leaving")

    (taken,) = await send_over(leave, accepts_one(0), count=1)
    assert isinstance(taken, DeliveryReport)


async def test_a_partly_written_message_is_sent_again() -> None:
    """Stop reading in the middle of the content, so that its end cannot have been sent."""
    taken: list[int] = []
    stuck = asyncio.Event()

    async def converse(peer: Peer) -> None:
        if not taken:
            await accept_probe(peer)
            taken.append(await read_flight(peer))
            await peer.say(b"250 reset", b"250 sender", b"250 recipient", b"250 taken")
            await stuck.wait()
            return
        await greet(peer, "PIPELINING", "CHUNKING")
        for _ in range(2):
            assert (await peer.line()).startswith(b"MAIL FROM:")
            await peer.line()
            taken.append(number_of(await peer.exactly(int((await peer.line()).split()[1]))))
            await peer.say(b"250 sender", b"250 recipient", b"250 taken")

    first, second = numbered(1) + numbered(2, filling=(b"x" * 998 + b"\r\n") * 240)[1:]
    async with raw_backend(converse, limit=4096) as backend:
        await backend.send_pipelined(first)
        shrink_send_buffer(backend)
        sending = asyncio.ensure_future(send_all(backend, [second, first]))
        await asyncio.sleep(0.2)
        stuck.set()
        outcomes = await sending
    assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)
    assert taken == [0, 1, 0]


def shrink_send_buffer(backend: SMTPBackend) -> None:
    """Reduce the send buffer of the only connection, which is idle."""
    pool = backend._pools.get()
    assert pool is not None
    (slot,) = pool._slots
    connection = slot.connection
    assert connection is not None
    connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


# A real server


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with Postfix() as server:
        yield server


def waiting(postfix: Postfix) -> bool:
    """True while Postfix has queued messages that are not in the mailbox."""
    queue = postfix._base / "queue"
    return any(file.is_file() for name in ("incoming", "active", "deferred") for file in (queue / name).rglob("*"))


async def check_mailbox(postfix: Postfix, before: int, outcomes: Sequence[Outcome]) -> Counter[int]:
    """Call ``check`` once all accepted messages are in the mailbox."""
    accepted = sum(isinstance(outcome, DeliveryReport) for outcome in outcomes)
    await postfix.arrive(before + accepted)
    async with asyncio.timeout(PATIENCE):
        while await asyncio.to_thread(waiting, postfix):
            await asyncio.sleep(0.05)
    arrived: Counter[int] = Counter()
    for content in postfix.stored()[before:]:
        number = number_of(content)
        found = re.search(rb"^Delivered-To: (\S+)$", content, re.MULTILINE)
        assert found is not None
        assert found[1] == b"to%d@example.com" % number
        arrived[number] += 1
    for number, outcome in enumerate(outcomes):
        allowed = {1} if isinstance(outcome, DeliveryReport) else {0, 1} if number in uncertain(outcomes) else {0}
        assert arrived[number] in allowed, number
    return arrived


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("pool_size", [1, 4])
async def test_five_hundred_arrive_at_postfix_once_each(postfix: Postfix, pool_size: int, tls: bool) -> None:
    before = len(postfix.stored())
    messages = numbered(500)
    messages[7::50] = [outgoing(b"refused\r\n", to=["gone@example.com"]) for _ in range(10)]
    async with SMTPBackend(EmailSettings(**postfix.settings(pool_size=pool_size, use_tls=tls))) as backend:
        outcomes = await send_all(backend, messages)
        assert backend.stats is not None
        assert backend.stats.reconnects == 0
    assert of_kind(outcomes, RecipientsRefused) == list(range(7, 500, 50))
    assert sum((await check_mailbox(postfix, before, outcomes)).values()) == 490


@asynccontextmanager
async def cutting_proxy(port: int, cut_after: Callable[[], int]) -> AsyncIterator[tuple[int, list[int]]]:
    """Forward to ``port``, and cut each connection after ``cut_after()`` bytes from the client, or to it."""
    cuts: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        limit = cut_after()
        passed = 0

        async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, weight: int) -> None:
            nonlocal passed
            while passed < limit and (data := await source.read(1024)):
                room = -(-(limit - passed) // weight)
                passed += len(data) * weight
                sink.write(data[:room])
                await sink.drain()

        # Replies count more, so that cuts hit them as often as messages.
        there = asyncio.create_task(forward(reader, server_writer, 1))
        back = asyncio.create_task(forward(server_reader, writer, 4))
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        there.cancel()
        back.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
        cuts.append(passed)
        writer.transport.abort()
        server_writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], cuts
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_outcomes_are_right_when_connections_to_postfix_are_cut_at_any_byte(postfix: Postfix, seed: int) -> None:
    before = len(postfix.stored())
    dice = random.Random(seed)
    async with cutting_proxy(postfix.ports["chunking"], lambda: dice.randrange(4_000, 25_000)) as (port, cuts):
        settings = EmailSettings(**postfix.settings(pool_size=2) | {"port": port})
        async with SMTPBackend(settings) as backend:
            outcomes = await send_all(backend, numbered(500))
            await all_released(backend)
    assert len(cuts) > 5
    arrived = await check_mailbox(postfix, before, outcomes)
    # Only uncertain messages may be missing, and only few are uncertain.
    failed = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, DeliveryReport)]
    assert failed == uncertain(outcomes)
    assert len(failed) <= 20 * len(cuts)
    assert max(arrived.values()) == 1


# Round trips


class RoundTripCounter(asyncio.Protocol):
    """Server that answers all pending messages at once, 20 or fewer if the client waits, and counts these rounds."""

    rounds = 0

    def __init__(self) -> None:
        self._buffer = b""
        self._skip = 0
        self._replies = b""
        self._pause: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 rounds.example\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pause is not None:
            self._pause.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            if self._skip:
                skipped = min(self._skip, len(self._buffer))
                self._buffer, self._skip = self._buffer[skipped:], self._skip - skipped
                if self._skip:
                    break
                self._replies += b"250 taken\r\n"
                if self._replies.count(b"taken") == 20:
                    self._answer()
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                break
            self._buffer = rest
            if line.startswith(b"BDAT"):
                self._skip = int(line.split()[1])
            elif line.startswith(b"EHLO"):
                self._replies += b"250-rounds.example\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
            else:
                self._replies += b"250 ok\r\n"
        if self._pause is not None:
            self._pause.cancel()
        self._pause = asyncio.get_running_loop().call_later(0.2, self._answer)

    def _answer(self) -> None:
        if self._replies:
            type(self).rounds += 1
            self._transport.write(self._replies)
            self._replies = b""


async def test_small_messages_take_a_fraction_of_a_round_trip_each() -> None:
    """Count the round trips of 500 messages, one each if sent one by one."""
    server = await asyncio.get_running_loop().create_server(RoundTripCounter, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = EmailSettings(host="127.0.0.1", port=port, pool_size=1, timeout=2 * PATIENCE)
    async with SMTPBackend(settings) as backend:
        outcomes = await send_all(backend, numbered(500))
    server.close()
    assert all(isinstance(outcome, DeliveryReport) for outcome in outcomes)
    assert 25 <= RoundTripCounter.rounds <= 100
