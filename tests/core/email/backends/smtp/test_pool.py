"""Connection pool: growth, expiry, waiting senders, cancellation, and a server that refuses."""

import asyncio
import contextlib
import gc
import random
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from support.messages import outgoing
from support.patience import PATIENCE, shown_in_time
from support.rawserver import Peer, greet, raw_server
from support.smtpd import Gate, SmtpServer, Tls

from openviper.core.email.backends.smtp.pool import ConnectionPool
from openviper.core.email.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    MessageRefused,
    PoolTimeout,
)
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured


@asynccontextmanager
async def pool_for(
    server: SmtpServer, *, acquire_timeout: float | None = None, grow_after: float = 600.0, **settings: object
) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(
        EmailSettings(**server.settings(**settings)), acquire_timeout=acquire_timeout, grow_after=grow_after
    )
    try:
        yield pool
    finally:
        await pool.aclose()


async def eventually(condition: object, timeout: float = PATIENCE) -> None:
    """Let the event loop run until ``condition()`` is true."""
    async with asyncio.timeout(timeout):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def connected(pool: ConnectionPool) -> None:
    """Open a connection, however often ``acquire_timeout`` ends first."""
    while not pool.stats.idle:
        with contextlib.suppress(PoolTimeout):
            await pool.warm()


async def until_connected(pool: ConnectionPool) -> None:
    """Open a connection as soon as the pool's pause is over."""
    async with asyncio.timeout(PATIENCE):
        while not pool.stats.idle:
            with contextlib.suppress(ConnectionFailed):
                await pool.warm()
            await asyncio.sleep(0.01)


async def cancel_at(gate: Gate, sending: Coroutine[Any, Any, object]) -> None:
    """Begin ``sending``, and cancel it when it reaches ``gate``."""
    task = asyncio.create_task(sending)
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_consecutive_messages_share_one_connection() -> None:
    with SmtpServer() as server:
        async with pool_for(server) as pool:
            for number in range(10):
                await pool.send(outgoing(number=number))
            stats = pool.stats
    assert server.connections == 1
    assert (stats.open, stats.idle, stats.waiting, stats.sent, stats.reconnects) == (1, 1, 0, 10, 0)
    assert server.verbs[-1] == "QUIT"


async def test_the_pool_grows_on_demand_up_to_pool_size() -> None:
    with SmtpServer() as server:
        server.delay("body", 0.02)
        async with pool_for(server, pool_size=3) as pool:
            await asyncio.gather(*(pool.send(outgoing(number=number)) for number in range(30)))
    assert len(server.messages) == 30
    assert server.most_open == server.connections == 3


async def test_waiting_senders_are_served_in_order() -> None:
    with SmtpServer() as server:
        gate = server.hold("body", nth=1)
        async with pool_for(server, pool_size=1) as pool:
            sends = []
            for number in range(8):
                sends.append(asyncio.create_task(pool.send(outgoing(sender=f"from{number}@example.com"))))
                await asyncio.sleep(0)
            await gate.reached()
            assert pool.stats.waiting == 7
            gate.release()
            await asyncio.gather(*sends)
    assert [message.sender for message in server.messages] == [f"from{number}@example.com" for number in range(8)]


async def test_a_sender_that_waits_too_long_gets_a_pool_timeout_and_nothing_was_sent() -> None:
    with SmtpServer() as server:
        gate = server.hold("body")
        async with pool_for(server, pool_size=1, acquire_timeout=0.2) as pool:
            await connected(pool)
            first = asyncio.create_task(pool.send(outgoing()))
            await gate.reached()
            with pytest.raises(PoolTimeout, match=r'EMAIL\["pool_size"\]') as raised:
                await pool.send(outgoing(number=2))
            gate.release()
            await first
            assert pool.stats.waiting == 0
    assert raised.value.temporary
    assert len(server.messages) == 1


async def test_an_idle_connection_is_closed_with_quit_after_idle_timeout() -> None:
    with SmtpServer() as server:
        async with pool_for(server, idle_timeout=0.2) as pool:
            gate = server.hold("body")
            sending = asyncio.gather(pool.send(outgoing()), pool.send(outgoing()))
            await server.seen("body", 2)
            gate.release()
            await sending
            await server.until(lambda: server.open_connections == 0)
            await eventually(lambda: pool.stats.open == 0)
            assert server.verbs.count("QUIT") == 2
            await pool.send(outgoing())
    assert server.connections == 3


async def test_a_connection_is_replaced_after_max_messages_per_connection() -> None:
    with SmtpServer() as server:
        async with pool_for(server, pool_size=1, max_messages_per_connection=3) as pool:
            for number in range(7):
                await pool.send(outgoing(number=number))
    assert [message.connection for message in server.messages] == [1, 1, 1, 2, 2, 2, 3]


async def test_a_connection_is_replaced_after_max_connection_age() -> None:
    with SmtpServer() as server:
        async with pool_for(server, max_connection_age=0.2) as pool:
            await pool.send(outgoing())
            await asyncio.sleep(0.25)
            await pool.send(outgoing())
    assert [message.connection for message in server.messages] == [1, 2]
    assert server.verbs.count("QUIT") == 2


async def test_an_idle_connection_that_the_server_closes_is_dropped_at_once() -> None:
    with SmtpServer() as server:
        async with pool_for(server) as pool:
            await pool.send(outgoing())
            await asyncio.to_thread(server.hang_up)
            await eventually(lambda: pool.stats.open == 0)
            await pool.send(outgoing())
            assert pool.stats.reconnects == 0
    assert [message.connection for message in server.messages] == [1, 2]


async def test_an_idle_connection_that_gets_421_is_not_used_again() -> None:
    told = asyncio.Event()

    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        await peer.line(), await peer.line()
        await peer.exactly(int((await peer.line()).split()[1]))
        await peer.say(b"250", b"250", b"250 taken")
        await told.wait()
        await peer.say(b"421 4.4.2 idle for too long")
        await peer.reader.read()

    async with raw_server(converse) as port:
        pool = ConnectionPool(EmailSettings(host="127.0.0.1", port=port))
        await pool.send(outgoing())
        told.set()
        await eventually(lambda: pool.stats.open == 0)
        await pool.send(outgoing())
        await pool.aclose()


# Cancellation


async def test_a_cancelled_waiter_is_removed() -> None:
    with SmtpServer() as server:
        gate = server.hold("body", nth=1)
        async with pool_for(server, pool_size=1) as pool:
            first = asyncio.create_task(pool.send(outgoing()))
            await gate.reached()
            waiting = [asyncio.create_task(pool.send(outgoing(number=number))) for number in range(5)]
            await asyncio.sleep(0)
            for task in waiting[:4]:
                task.cancel()
            await asyncio.gather(*waiting[:4], return_exceptions=True)
            assert pool.stats.waiting == 1
            gate.release()
            await asyncio.gather(first, waiting[4])
    assert len(server.messages) == 2
    assert server.connections == 1


async def test_a_waiter_cancelled_as_it_gets_a_connection_passes_it_on() -> None:
    with SmtpServer() as server:
        async with pool_for(server, pool_size=1) as pool:
            connection = await pool.acquire()
            first, second = (asyncio.create_task(pool.acquire()) for _ in range(2))
            await asyncio.sleep(0)
            pool.release(connection)  # assigned to first, which has not run yet
            first.cancel()
            assert await second is connection
            assert first.cancelled()
            pool.release(connection)
            assert pool.stats.idle == 1


async def test_a_cancelled_send_closes_its_connection() -> None:
    with SmtpServer() as server:
        gate = server.hold("body", nth=1)
        async with pool_for(server, pool_size=1) as pool:
            await cancel_at(gate, pool.send(outgoing()))
            assert pool.stats.open == 0
            gate.release()
            await pool.send(outgoing(number=2))
    assert server.connections == 2


async def test_a_connection_opened_for_a_cancelled_sender_serves_the_next() -> None:
    with SmtpServer() as server:
        gate = server.hold("greeting", nth=1)
        async with pool_for(server, pool_size=1) as pool:
            await cancel_at(gate, pool.send(outgoing()))
            gate.release()
            await pool.send(outgoing(number=2))
    assert server.connections == 1


@pytest.mark.parametrize("tls", ["none", "starttls"])
async def test_cancelling_at_random_leaks_nothing_and_sends_nothing_twice(tls: Tls) -> None:
    dice = random.Random(11)
    open_ones: list[int] = []
    with SmtpServer(tls=tls) as server:
        async with pool_for(server, pool_size=4) as pool:

            async def send(number: int) -> bool:
                task = asyncio.create_task(pool.send(outgoing(sender=f"{number}@example.com")))
                await asyncio.sleep(dice.random() * 0.02)
                task.cancel()
                open_ones.append(pool.stats.open)
                try:
                    await task
                except asyncio.CancelledError:
                    return False
                return True

            done = await asyncio.gather(*(send(number) for number in range(200)))
            assert pool.stats.waiting == 0
            await asyncio.gather(*(pool.send(outgoing()) for _ in range(20)))
            assert pool.stats.open <= 4
        await server.until(lambda: server.open_connections == 0)
    senders = [message.sender for message in server.messages if message.sender != "from@example.com"]
    assert len(senders) == len(set(senders))
    assert {f"{number}@example.com" for number, sent in enumerate(done) if sent} <= set(senders)
    assert max(open_ones) <= 4


# A server that refuses


async def test_a_refused_connection_fails_every_waiting_sender_at_once() -> None:
    with SmtpServer() as server:
        server.fault("greeting", 554)
        async with pool_for(server, pool_size=5) as pool, asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*(pool.send(outgoing()) for _ in range(100)), return_exceptions=True)
            assert pool.stats.waiting == 0
    assert all(isinstance(outcome, ConnectionFailed) and outcome.code == 554 for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 100
    assert server.connections <= 5


async def test_connecting_backs_off_while_the_server_refuses() -> None:
    with SmtpServer(users={"me": "right"}) as server:
        async with pool_for(server, pool_size=5, password="wrong") as pool:
            with pytest.raises(AuthenticationFailed):
                await pool.send(outgoing())
            end = time.monotonic() + 1.0
            failures = 0
            while time.monotonic() < end:
                outcomes = await asyncio.gather(*(pool.send(outgoing()) for _ in range(20)), return_exceptions=True)
                failures += sum(isinstance(outcome, AuthenticationFailed) for outcome in outcomes)
    assert failures >= 20
    # Pauses double from 0.1 s (with jitter from 0.05 s), so a second holds few attempts.
    assert server.connections <= 8


async def test_a_server_that_recovers_is_used_again() -> None:
    with SmtpServer() as server:
        server.fault("greeting", 421)
        async with pool_for(server) as pool:
            for _ in range(2):
                with pytest.raises(ConnectionFailed):
                    await pool.send(outgoing())
            server.behave()
            await until_connected(pool)
            await asyncio.gather(*(pool.send(outgoing()) for _ in range(10)))
    assert len(server.messages) == 10


async def test_senders_share_the_connections_that_the_server_allows() -> None:
    """Allow two connections and refuse further ones; no sender fails because of that."""
    with SmtpServer(connection_limit=2) as server:
        server.delay("body", 0.02)
        async with pool_for(server, pool_size=5) as pool:
            await pool.send(outgoing())
            await asyncio.gather(*(pool.send(outgoing()) for _ in range(30)))
    assert len(server.messages) == 31


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("verb", "action"),
    [("greeting", 421), ("greeting", "drop"), ("greeting", 554), ("connect", "reset"), ("EHLO", 421), ("MAIL", 421)],
)
async def test_a_server_that_allows_fewer_connections_costs_no_message(
    limit: int, verb: str, action: int | str
) -> None:
    """Send 200 messages at once over a cold pool of five connections."""
    with SmtpServer(connection_limit=limit, limit_at=verb, limit_action=action) as server:
        server.delay("greeting" if verb in ("greeting", "connect") else verb, 0.02)  # of those within the limit
        server.delay("body", 0.002)
        async with pool_for(server, pool_size=5, max_messages_per_connection=30) as pool:
            people = [f"to{number}@example.com" for number in range(200)]
            await asyncio.gather(*(pool.send(outgoing(to=[each])) for each in people))
    assert sorted(message.recipients[0] for message in server.messages) == sorted(people)
    assert server.most_admitted <= limit


async def test_a_server_that_counts_refused_connections_is_asked_for_a_single_one() -> None:
    """Refuse all of the first five connections, which came at the same moment, and allow the sixth."""
    with SmtpServer() as server:
        for number in range(1, 6):
            server.fault("greeting", 421, nth=number)
        gates = [server.hold("connect", nth=number) for number in range(1, 6)]
        async with pool_for(server, pool_size=5) as pool:
            sending = asyncio.gather(*(pool.send(outgoing()) for _ in range(20)))
            await server.seen("connect", 5)
            for gate in gates:
                gate.release()
            await sending
    assert len(server.messages) == 20
    assert server.connections == 6


async def test_a_connection_that_still_counts_after_its_end_does_not_cost_the_next_message() -> None:
    """Refuse the connection that replaces one closed a moment ago."""
    with SmtpServer() as server:
        server.fault("greeting", 421, nth=2)
        async with pool_for(server, pool_size=1, max_messages_per_connection=1) as pool:
            await asyncio.gather(*(pool.send(outgoing()) for _ in range(3)))
    assert [message.connection for message in server.messages] == [1, 3, 4]


async def test_a_pool_that_the_server_has_shrunk_asks_for_no_more_for_a_while() -> None:
    with SmtpServer(connection_limit=2) as server:
        server.delay("body", 0.01)
        async with pool_for(server, pool_size=5, idle_timeout=PATIENCE) as pool:
            for _ in range(3):
                await asyncio.gather(*(pool.send(outgoing()) for _ in range(20)))
            assert pool.stats.open == 2
    assert server.connections == 5  # of the first moment


async def test_a_pool_grows_again_when_the_server_allows_more() -> None:
    with SmtpServer(connection_limit=1) as server:
        async with pool_for(server, pool_size=4, grow_after=0.1) as pool:
            await asyncio.gather(*(pool.send(outgoing()) for _ in range(20)))
            assert server.most_admitted == 1
            server.connection_limit = 4
            server.delay("body", 0.01)
            async with asyncio.timeout(PATIENCE):
                while server.most_admitted < 4:
                    await asyncio.gather(*(pool.send(outgoing()) for _ in range(20)))


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "MAIL"])
async def test_a_server_that_allows_no_connection_gives_every_sender_its_temporary_error(verb: str) -> None:
    with SmtpServer(connection_limit=0, limit_at=verb) as server:
        async with pool_for(server, pool_size=5) as pool, asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*(pool.send(outgoing()) for _ in range(100)), return_exceptions=True)
            assert (pool.stats.open, pool.stats.waiting) == (0, 0)
    assert all(isinstance(each, ConnectionFailed) and each.temporary and each.code == 421 for each in outcomes)
    assert server.connections <= 10


@pytest.mark.parametrize("action", [554, 421, "drop"])
async def test_senders_do_not_pay_for_the_pauses_between_attempts_to_connect(action: int | str) -> None:
    """Send 60 messages one after another while the server is down: most get the error of an earlier attempt."""
    with SmtpServer() as server:
        server.fault("greeting", action)
        async with pool_for(server) as pool:
            errors = set()
            for number in range(60):
                with pytest.raises(ConnectionFailed) as raised:
                    await pool.send(outgoing(number=number))
                errors.add(raised.value)
            assert len(errors) == 60
            assert len({str(error) for error in errors}) == 1
    assert server.connections < 20


async def test_a_port_that_refuses_connections_gives_its_error_in_a_pause() -> None:
    with SmtpServer() as server:
        pass
    async with pool_for(server) as pool:
        for number in range(60):
            with pytest.raises(ConnectionFailed, match="refused") as raised:
                await pool.send(outgoing(number=number))
            assert raised.value.temporary


# Login


@pytest.mark.parametrize("method", ["PLAIN", "CRAM-MD5"])
async def test_a_wrong_password_is_one_failed_login_for_all_senders_of_a_cold_pool(method: str) -> None:
    with SmtpServer(users={"me": "right"}, auth_methods=[method]) as server:
        async with pool_for(server, pool_size=5, password="wrong") as pool:
            outcomes = await asyncio.gather(*(pool.send(outgoing()) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(each, AuthenticationFailed) and each.code == 535 for each in outcomes)
    assert server.verbs.count("AUTH") == server.connections == 1


async def test_a_password_that_is_changed_is_one_failed_login() -> None:
    """Change it on the server while all connections have ended, and log in again."""
    with SmtpServer(users={"me": "right"}) as server:
        async with pool_for(server, pool_size=5) as pool:
            for connection in await asyncio.gather(*(pool.acquire() for _ in range(5))):
                pool.release(connection)
            before = server.verbs.count("AUTH")
            server.users["me"] = "new"
            await asyncio.to_thread(server.hang_up)
            await eventually(lambda: pool.stats.open == 0)
            with pytest.raises(AuthenticationFailed):
                await pool.send(outgoing())
            await asyncio.gather(*(pool.send(outgoing()) for _ in range(20)), return_exceptions=True)
    assert server.verbs.count("AUTH") == before + 2


async def test_other_connections_are_opened_once_the_first_login_has_succeeded() -> None:
    with SmtpServer(users={"me": "right"}) as server:
        login, bodies = server.hold("AUTH"), server.hold("body")
        async with pool_for(server, pool_size=5) as pool:
            sending = asyncio.gather(*(pool.send(outgoing()) for _ in range(20)))
            await login.reached()
            assert server.connections == 1
            login.release()
            await server.seen("body", 5)
            bodies.release()
            await sending
    assert server.connections == 5


# Connections lost without a word


async def idle_connections(server: SmtpServer, pool: ConnectionPool, count: int) -> None:
    """Open ``count`` connections, and let them be idle for longer than they are taken to be alive."""
    borrowed = await asyncio.gather(*(pool.acquire() for _ in range(count)))
    for connection in borrowed:
        pool.release(connection)
    await asyncio.sleep(1.05)


@pytest.mark.parametrize("capabilities", [("PIPELINING", "CHUNKING"), ("PIPELINING",), ("CHUNKING",), ()])
async def test_after_one_silent_idle_connection_its_elders_are_not_used(capabilities: tuple[str, ...]) -> None:
    async def show(limit: float) -> None:
        with SmtpServer(capabilities=capabilities) as server:
            async with pool_for(server, pool_size=5, timeout=limit) as pool:
                await idle_connections(server, pool, 5)
                server.fault("MAIL", "silence", nth=1)
                for number in range(5):
                    await pool.send(outgoing(number=number))
                assert pool.stats.reconnects == 1
        assert [message.connection for message in server.messages] == [6] * 5
        assert server.verbs.count("MAIL") == 6

    await shown_in_time(show)


async def test_senders_that_each_meet_a_silent_idle_connection_lose_no_message() -> None:
    async def show(limit: float) -> None:
        with SmtpServer() as server:
            async with pool_for(server, pool_size=5, timeout=limit) as pool:
                await idle_connections(server, pool, 5)
                for number in range(1, 6):
                    server.fault("MAIL", "silence", nth=number)
                await asyncio.gather(*(pool.send(outgoing()) for _ in range(5)))
        assert len(server.messages) == 5

    await shown_in_time(show)


@pytest.mark.parametrize(("verb", "uncertain"), [("RCPT", False), ("body", True)])
async def test_silence_after_a_reply_is_not_answered_by_another_attempt(verb: str, uncertain: bool) -> None:
    async def show(limit: float) -> None:
        with SmtpServer(capabilities=["CHUNKING"]) as server:
            async with pool_for(server, timeout=limit, data_timeout=limit) as pool:
                await idle_connections(server, pool, 1)
                server.fault(verb, "silence", nth=1)
                with pytest.raises(DeliveryTimeout) as raised:
                    await pool.send(outgoing())
        assert raised.value.uncertain is uncertain
        assert server.verbs.count("MAIL") == 1

    await shown_in_time(show)


# CHUNKING that is offered and not known, and the limits that a server announces


@pytest.mark.parametrize("code", [500, 502, 503])
@pytest.mark.parametrize("body", [b"small\r\n", (b"x" * 76 + b"\r\n") * 20_000], ids=["small", "large"])
@pytest.mark.parametrize("capabilities", [("PIPELINING", "CHUNKING"), ("CHUNKING",)], ids=str)
async def test_a_server_that_refuses_bdat_as_unknown_gets_data(
    code: int, body: bytes, capabilities: tuple[str, ...]
) -> None:
    with SmtpServer(capabilities=capabilities) as server:
        server.fault("BDAT", code)
        async with pool_for(server, pool_size=1) as pool:
            for number in range(3):
                await pool.send(outgoing(body, number=number))
    assert [message.via for message in server.messages] == ["DATA"] * 3
    assert {message.content for message in server.messages} == {b"".join(outgoing(body).content)}
    assert {message.connection for message in server.messages} == {2}


async def test_bdat_refused_for_another_reason_is_a_refusal() -> None:
    with SmtpServer() as server:
        server.fault("BDAT", 554)
        async with pool_for(server) as pool:
            with pytest.raises(MessageRefused):
                await pool.send(outgoing())
    assert server.messages == []


async def test_content_that_a_proxy_reads_as_commands_is_sent_again_by_data() -> None:
    """Answer each line behind BDAT with 500, as a proxy does that passes on the keyword of the server behind it."""
    stored: list[bytes] = []

    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        while True:
            line = await peer.line()
            if line == b"DATA":
                await peer.say(b"354 go ahead")
                stored.append(await peer.until(b"\r\n.\r\n"))
                await peer.say(b"250 taken")
            elif line.startswith((b"MAIL", b"RCPT", b"RSET")):
                await peer.say(b"250 ok")
            elif line == b"QUIT":
                return
            else:
                await peer.say(b"500 unknown command")

    async with raw_server(converse) as port:
        pool = ConnectionPool(EmailSettings(host="127.0.0.1", port=port, pool_size=1))
        for number in range(3):
            await pool.send(outgoing(b"number %d\r\n" % number))
        await pool.aclose()
    assert [text.splitlines()[-2] for text in stored] == [b"number 0", b"number 1", b"number 2"]


@pytest.mark.parametrize(
    ("offered", "setting", "expected"),
    [
        ("LIMITS MAILMAX=2", 100, [1, 1, 2, 2, 3]),
        ("LIMITS RCPTMAX=9 MAILMAX=1", 100, [1, 2, 3, 4, 5]),
        ("LIMITS MAILMAX=4", 3, [1, 1, 1, 2, 2]),
        ("LIMITS MAILMAX=0", 100, [1, 1, 1, 1, 1]),
    ],
)
async def test_a_connection_carries_no_more_messages_than_the_server_announces(
    offered: str, setting: int, expected: list[int]
) -> None:
    with SmtpServer(capabilities=["PIPELINING", offered]) as server:
        async with pool_for(server, pool_size=1, max_messages_per_connection=setting) as pool:
            for number in range(5):
                await pool.send(outgoing(number=number))
    assert [message.connection for message in server.messages] == expected


async def test_a_pool_closes_connections_before_a_server_that_does_so_after_some_messages() -> None:
    """A message sent at the moment of the server's close is uncertain, however it ends."""
    with SmtpServer(closes_after=3) as server:
        async with pool_for(server, pool_size=2) as pool:
            for number in range(30):
                with contextlib.suppress(ConnectionFailed):  # by chance, before the limit is known
                    await pool.send(outgoing(number=number))
            connection = await pool.acquire()
            assert connection.max_messages == 3
            pool.release(connection)
        carried = Counter(message.connection for message in server.messages)
    assert max(carried.values()) == 3


async def test_those_who_wait_get_another_connection_when_a_shrunk_pool_grows() -> None:
    with SmtpServer(connection_limit=1) as server:
        gate = server.hold("body", nth=1)
        async with pool_for(server, pool_size=2, grow_after=0.3) as pool:
            sending = [asyncio.create_task(pool.send(outgoing(number=number))) for number in range(2)]
            await gate.reached()
            await server.until(lambda: server.connections >= 2)  # the second one was refused
            server.connection_limit = None
            await server.arrive(1)  # over a third, although the first is still held
            gate.release()
            await asyncio.gather(*sending)


async def test_refused_messages_count_towards_the_limit_that_the_server_announces() -> None:
    with SmtpServer(capabilities=["LIMITS MAILMAX=2"]) as server:
        server.fault("MAIL", 550, nth=1)
        async with pool_for(server, pool_size=1) as pool:
            with pytest.raises(MessageRefused):
                await pool.send(outgoing())
            for number in range(2):
                await pool.send(outgoing(number=number))
    assert [message.connection for message in server.messages] == [1, 2]


async def test_a_stale_connection_whose_replacement_is_refused_raises_that_error() -> None:
    with SmtpServer() as server:
        async with pool_for(server, pool_size=1) as pool:
            await pool.send(outgoing())
            server.fault("MAIL", 421, nth=1)
            server.fault("greeting", 554, nth=1)
            with pytest.raises(ConnectionFailed, match="greeting: 554"):
                await pool.send(outgoing(number=2))
            await pool.send(outgoing(number=3))
            assert pool.stats.open == 1
    assert len(server.messages) == 2


async def test_a_send_cancelled_while_its_connection_is_replaced_leaks_nothing() -> None:
    with SmtpServer() as server:
        async with pool_for(server, pool_size=1) as pool:
            await pool.send(outgoing())
            server.fault("MAIL", 421, nth=1)
            gate = server.hold("greeting", nth=1)
            await cancel_at(gate, pool.send(outgoing(number=2)))
            assert pool.stats.open == 0
            gate.release()
            await pool.send(outgoing(number=3))
        await server.until(lambda: server.open_connections == 0)


async def test_a_wrong_setting_found_while_connecting_reaches_the_sender(tmp_path: Path) -> None:
    with SmtpServer(tls="implicit") as server:
        async with pool_for(server, tls_ca_file=str(tmp_path / "missing.pem")) as pool:
            with pytest.raises(ImproperlyConfigured, match="tls_ca_file"):
                await pool.send(outgoing())


# Closing, context variables, rate limit


async def test_closing_waits_for_connections_in_use() -> None:
    with SmtpServer() as server:
        gate = server.hold("body", nth=1)
        async with pool_for(server) as pool:
            task = asyncio.create_task(pool.send(outgoing()))
            await gate.reached()
            closing = asyncio.create_task(pool.aclose())
            await asyncio.sleep(0.05)
            assert not closing.done()
            gate.release()
            await closing
            assert (await task).accepted
            with pytest.raises(ConnectionFailed, match="closed"):
                await pool.send(outgoing())
    assert server.verbs[-1] == "QUIT"


async def test_closing_waits_no_longer_than_its_limit() -> None:
    with SmtpServer() as server:
        server.fault("body", "silence")
        async with pool_for(server) as pool:
            task = asyncio.create_task(pool.send(outgoing()))
            await server.seen("body")
            async with asyncio.timeout(PATIENCE):
                await pool.aclose(limit=0.2)
            with pytest.raises(DeliveryError) as raised:
                await task
    assert raised.value.uncertain


async def test_closing_fails_waiting_senders_and_connects_in_progress() -> None:
    with SmtpServer() as server:
        server.fault("greeting", "silence")
        async with pool_for(server, pool_size=1) as pool:
            tasks = [asyncio.create_task(pool.send(outgoing())) for _ in range(3)]
            await server.seen("greeting")
            async with asyncio.timeout(PATIENCE):
                await pool.aclose()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, ConnectionFailed) and outcome.temporary for outcome in outcomes)


async def test_connections_do_not_keep_the_first_senders_context_variables() -> None:
    class Request:
        pass

    variable: ContextVar[Request] = ContextVar("request")

    async def handle(pool: ConnectionPool) -> "weakref.ref[Request]":
        request = Request()
        variable.set(request)
        await pool.send(outgoing())
        return weakref.ref(request)

    with SmtpServer() as server:
        async with pool_for(server) as pool:
            requests = [await asyncio.create_task(handle(pool)) for _ in range(3)]
            await asyncio.sleep(0)  # the loop still refers to the last task
            gc.collect()
            assert [request() for request in requests] == [None, None, None]
            assert pool.stats.idle == 1


@pytest.mark.parametrize("rate", ["10/second", "600/minute"])
async def test_all_pools_of_the_process_share_the_rate_limit(rate: str) -> None:
    with SmtpServer() as server:
        async with pool_for(server, rate_limit=rate) as one, pool_for(server, rate_limit=rate) as other:
            begin = time.monotonic()
            await asyncio.gather(*(pool.send(outgoing()) for pool in (one, other) for _ in range(10)))
            taken = time.monotonic() - begin
    # The tokens of one second are saved; the other ten take a second.
    assert taken > 0.8
    assert len(server.messages) == 20


async def test_a_pool_without_a_rate_limit_does_not_wait() -> None:
    with SmtpServer() as server:
        async with pool_for(server) as pool:
            assert pool._limiter is None


async def test_a_reply_that_trickles_in_does_not_extend_the_timeout() -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        await peer.line()
        while True:
            await peer.say(b"250-not yet")
            await asyncio.sleep(0.1)

    async with raw_server(converse) as port:
        pool = ConnectionPool(EmailSettings(host="127.0.0.1", port=port, timeout=0.5, data_timeout=0.5))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DeliveryError, match="did not answer in time"):
                await pool.send(outgoing())
        await pool.aclose()


async def test_many_slow_replies_do_not_extend_the_total_deadline() -> None:
    """Send each reply in time, but all of them together too late."""

    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING")
        await peer.line()
        while True:
            await peer.say(b"250 slowly")
            await asyncio.sleep(0.1)

    async with raw_server(converse) as port:
        pool = ConnectionPool(EmailSettings(host="127.0.0.1", port=port, timeout=0.2, data_timeout=0.2))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DeliveryError, match="did not answer in time"):
                await pool.send(outgoing(to=[f"r{number}@example.com" for number in range(200)]))
        await pool.aclose()
