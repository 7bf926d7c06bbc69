"""Every fault at every step, for each set of capabilities, with and without TLS: the right error, and no hang."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import uvloop
from support.messages import outgoing
from support.patience import PATIENCE, shown_in_time
from support.smtpd import CAPABILITIES, SmtpServer

from openviper.core.email.backends import SMTPBackend
from openviper.core.email.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    MessageRefused,
    RecipientsRefused,
)
from openviper.core.email.settings import EmailSettings

OFFERS = {
    "chunking": CAPABILITIES,
    "pipelining": ("PIPELINING", "SIZE 1000000"),
    "nothing": (),
}
FAULTS = ("drop", "reset", 421, 450, 550, "garbage")  # and silence, whose cases wait concurrently
HANDSHAKE = ("connect", "greeting", "EHLO", "STARTTLS", "AUTH")
TRANSACTION = ("MAIL", "RCPT", "content", "body")


@dataclass(frozen=True)
class Case:
    verb: str
    fault: str | int
    offer: str
    tls: bool

    def __str__(self) -> str:
        return f"{self.verb}-{self.fault}-{self.offer}-{'tls' if self.tls else 'clear'}"

    @property
    def one_flight(self) -> bool:
        return self.offer == "chunking"

    @property
    def command(self) -> str:
        """Return the command that the server gets."""
        return ("BDAT" if self.one_flight else "DATA") if self.verb == "content" else self.verb


@dataclass(frozen=True)
class Expected:
    error: type[DeliveryError]
    temporary: bool = True
    uncertain: bool = False
    code: int | None = None


def expected(case: Case) -> Expected:
    """Return the error that the caller must get."""
    fault = case.fault
    if case.verb in HANDSHAKE:
        return expected_of_handshake(case)
    # In one flight the whole message has been sent when any reply is missing.
    uncertain = case.verb == "body" or case.one_flight
    if fault in ("drop", "reset", "garbage"):
        return Expected(ConnectionFailed, uncertain=uncertain)
    if fault == "silence":
        return Expected(DeliveryTimeout, uncertain=uncertain)
    if fault == 421:
        return Expected(ConnectionFailed, code=421)
    assert isinstance(fault, int)
    refusal = RecipientsRefused if case.verb == "RCPT" else MessageRefused
    return Expected(refusal, temporary=fault < 500, code=fault)


def expected_of_handshake(case: Case) -> Expected:
    fault, verb = case.fault, case.verb
    if verb == "EHLO" and fault == 550:
        # HELO is tried, after which there is neither STARTTLS nor AUTH.
        return Expected(ConnectionFailed if case.tls else AuthenticationFailed, temporary=False)
    if fault == "silence":
        return Expected(DeliveryTimeout)
    if isinstance(fault, int):
        refusal = AuthenticationFailed if verb == "AUTH" and fault != 421 else ConnectionFailed
        return Expected(refusal, temporary=fault < 500, code=fault)
    return Expected(ConnectionFailed)


def cases() -> Iterator[Case]:
    for offer in OFFERS:
        for tls in (False, True):
            for verb in HANDSHAKE + TRANSACTION:
                if verb == "STARTTLS" and not tls:
                    continue
                for fault in ("drop", "reset") if verb == "connect" else FAULTS:
                    yield Case(verb, fault, offer, tls)


def make_server(case: Case) -> SmtpServer:
    return SmtpServer(capabilities=OFFERS[case.offer], tls="starttls" if case.tls else "none", users={"me": "s3cret!"})


# Only silence is waited for; all else is answered, however busy the machine is.
LIMIT = 2 * PATIENCE  # seconds


def make_backend(server: SmtpServer, limit: float) -> SMTPBackend:
    return SMTPBackend(EmailSettings(**server.settings(timeout=limit, data_timeout=limit)))


@pytest.mark.parametrize("case", list(cases()), ids=str)
async def test_a_fault_gives_the_right_error_and_leaves_a_working_pool(case: Case) -> None:
    await show_case(case)


@pytest.mark.parametrize("verb", HANDSHAKE + TRANSACTION)
async def test_silence_gives_a_timeout_and_leaves_a_working_pool(verb: str) -> None:
    async def show(case: Case) -> None:
        await shown_in_time(lambda limit: show_case(case, limit))

    await asyncio.gather(*(show(case) for case in cases_at(verb, "silence") if case.tls or verb != "STARTTLS"))


@pytest.mark.parametrize("verb", HANDSHAKE + TRANSACTION)
def test_uvloop_passes_the_same_matrix(verb: str) -> None:
    async def show_all() -> None:
        await asyncio.gather(*(show_case(case) for case in cases() if case.verb == verb))
        await test_silence_gives_a_timeout_and_leaves_a_working_pool(verb)

    uvloop.run(show_all())


async def show_case(case: Case, limit: float = LIMIT) -> None:
    with make_server(case) as server:
        server.fault(case.command, case.fault, nth=None if case.verb == "AUTH" else 1)
        async with asyncio.timeout(PATIENCE), make_backend(server, limit) as backend:
            want = expected(case)
            with pytest.raises(want.error) as raised:
                await backend.send(outgoing())
            error = raised.value
            assert (error.temporary, error.uncertain, error.code) == (want.temporary, want.uncertain, want.code), error
            assert str(error).startswith(f"{server.host}:{server.port}: ")
            assert "s3cret!" not in f"{error!r} {error.__cause__!r}"
            assert not server.messages
            server.behave()
            report = await backend.send(outgoing(number=2))
            assert report.accepted == ("to@example.com",)
            await server.arrive(1)
            stats = backend.stats
            assert stats is not None
            assert (stats.open, stats.idle, stats.waiting) == (1, 1, 0)


def cases_at(verb: str, fault: str | int) -> list[Case]:
    return [Case(verb, fault, offer, tls) for offer in OFFERS for tls in (False, True)]


@pytest.mark.parametrize("fault", [*FAULTS, "silence"])
async def test_a_fault_at_rset_never_delivers_to_earlier_recipients(fault: str | int) -> None:
    """Send RSET before the next message; if it fails, that message is sent on a new connection or not at all."""

    async def show(case: Case, limit: float) -> None:
        with make_server(case) as server:
            server.refuse("gone@example.com", 550)
            server.fault("RSET", fault, nth=1)
            settings = EmailSettings(**server.settings(allow_partial=False, timeout=limit))
            async with asyncio.timeout(PATIENCE), SMTPBackend(settings) as backend:
                with pytest.raises(RecipientsRefused):
                    await backend.send(outgoing(to=["first@example.com", "gone@example.com"]))
                if fault in ("silence", "garbage"):
                    with pytest.raises(DeliveryTimeout if fault == "silence" else ConnectionFailed) as raised:
                        await backend.send(outgoing(number=2))
                    assert raised.value.temporary
                    assert not raised.value.uncertain
                await backend.send(outgoing(number=3))
                (message,) = await server.arrive(1)
        assert message.recipients == ["to@example.com"]

    await asyncio.gather(*(shown(partial(show, case), fault) for case in cases_at("RSET", fault)))


async def shown(show: Callable[[float], Awaitable[None]], fault: str | int) -> None:
    """Await ``show`` with a timeout that only silence reaches."""
    await (shown_in_time(show) if fault == "silence" else show(LIMIT))


@pytest.mark.parametrize("fault", [*FAULTS, "silence"])
async def test_a_fault_at_quit_neither_raises_nor_hangs(fault: str | int) -> None:
    async def show(case: Case) -> None:
        with make_server(case) as server:
            server.fault("QUIT", fault)
            backend = make_backend(server, LIMIT)
            await backend.send(outgoing())
            async with asyncio.timeout(PATIENCE):
                await backend.aclose()
            assert server.verbs[-1] == "QUIT"

    await asyncio.gather(*map(show, cases_at("QUIT", fault)))


@pytest.mark.parametrize(
    ("verb", "fault"),
    [("connect", fault) for fault in ("drop", "reset", "silence")]
    + [(verb, fault) for verb in ("greeting", "AUTH") for fault in (*FAULTS, "silence")],
)
async def test_implicit_tls_fails_in_the_same_ways(verb: str, fault: str | int) -> None:
    case = Case(verb, fault, "chunking", True)

    async def show(limit: float) -> None:
        with SmtpServer(tls="implicit", users={"me": "s3cret!"}) as server:
            server.fault(verb, fault, nth=None if verb == "AUTH" else 1)
            async with asyncio.timeout(PATIENCE), make_backend(server, limit) as backend:
                want = expected_of_handshake(case)
                with pytest.raises(want.error) as raised:
                    await backend.send(outgoing())
                assert (raised.value.temporary, raised.value.uncertain) == (want.temporary, False)
                server.behave()
                await backend.send(outgoing(number=2))
                await server.arrive(1)

    await shown(show, fault)
