"""The rules by which a reply is read: step, reply code and enhanced code (RFC 5321 section 4.2, RFC 3463)."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from support.messages import outgoing
from support.smtpd import CAPABILITIES, SmtpServer

from openviper.core.email import AuthenticationFailed, ConnectionFailed, DeliveryError, MessageRefused, Refusal
from openviper.core.email.backends import SMTPBackend
from openviper.core.email.backends.smtp.replies import ReplyReader, exceeds_recipient_limit
from openviper.core.email.errors import RecipientsRefused
from openviper.core.email.settings import EmailSettings

OFFERS = {"chunking": CAPABILITIES, "pipelining": ("PIPELINING",), "nothing": ()}
ALL_OFFERS = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
LOGIN, RECIPIENTS, SIZE = 'EMAIL["username"]', 'EMAIL["max_recipients_per_message"]', "too large"


def addresses(count: int) -> list[str]:
    return [f"r{number}@example.com" for number in range(count)]


def make_backend(server: SmtpServer, **more: object) -> SMTPBackend:
    return SMTPBackend(EmailSettings(**server.settings(**more)))


# One reply to one command


@dataclass(frozen=True)
class Row:
    step: str
    reply: str
    error: type[DeliveryError]
    temporary: bool
    enhanced: str | None = None
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.step}-{self.reply}"


ROWS = [
    # Unknown codes by their first digit.
    Row("MAIL", "499 what", MessageRefused, True),
    Row("MAIL", "599 what", MessageRefused, False),
    Row("RCPT", "470 what", RecipientsRefused, True),
    Row("RCPT", "577", RecipientsRefused, False),
    Row("body", "438 what", MessageRefused, True),
    Row("body", "590 what", MessageRefused, False),
    Row("MAIL", "350 what", ConnectionFailed, True),
    Row("RCPT", "334 what", ConnectionFailed, True),
    Row("body", "399 what", ConnectionFailed, True),
    Row("MAIL", "150 what", ConnectionFailed, True),
    Row("body", "199 what", ConnectionFailed, True),
    # An enhanced code of another class says nothing.
    Row("MAIL", "451 5.7.1 what", MessageRefused, True),
    Row("MAIL", "550 4.7.1 what", MessageRefused, False),
    Row("RCPT", "450 5.1.1 no", RecipientsRefused, True),
    Row("body", "554 2.0.0 no", MessageRefused, False),
    Row("body", "451 4.3.0 later", MessageRefused, True, "4.3.0"),
    Row("RCPT", "550 5.1.1 no such user", RecipientsRefused, False, "5.1.1"),
    Row("RCPT", "550 5.1.1234 no such user", RecipientsRefused, False),
    Row("RCPT", "550-5.1.1 no such user\r\n550 5.1.1 here", RecipientsRefused, False, "5.1.1"),
    Row("RCPT", "550 no such user (#5.1.1)", RecipientsRefused, False),
    # Parameters.
    Row("MAIL", "455 parameters", MessageRefused, True),
    Row("MAIL", "555 5.5.4 parameters", MessageRefused, False, "5.5.4"),
    Row("RCPT", "455 parameters", RecipientsRefused, True),
    Row("RCPT", "555 parameters", RecipientsRefused, False),
    # A login or encryption is needed: not the message's fault, at any step.
    Row("MAIL", "530 5.7.0 authentication required", AuthenticationFailed, False, "5.7.0", LOGIN),
    Row("MAIL", "530 5.7.0 must issue a STARTTLS command first", AuthenticationFailed, False, "5.7.0", "use_tls"),
    Row("MAIL", "535 5.7.8 log in", AuthenticationFailed, False, "5.7.8", LOGIN),
    Row("MAIL", "534 5.7.9 too weak", AuthenticationFailed, False, "5.7.9", LOGIN),
    Row("MAIL", "538 5.7.11 encrypt", AuthenticationFailed, False, "5.7.11", LOGIN),
    Row("RCPT", "530 log in", AuthenticationFailed, False, None, LOGIN),
    Row("body", "530 5.7.57 not authenticated", AuthenticationFailed, False, "5.7.57", LOGIN),
    Row("MAIL", "550 5.7.1 not yours", MessageRefused, False, "5.7.1"),
    Row("body", "550 5.7.1 policy", MessageRefused, False, "5.7.1"),
    # Sizes.
    Row("MAIL", "552 5.3.4 too big", MessageRefused, False, "5.3.4", SIZE),
    Row("MAIL", "552 message size exceeds the limit", MessageRefused, False, None, SIZE),
    Row("MAIL", "452 4.3.1 no space", MessageRefused, True, "4.3.1"),
    Row("RCPT", "523 length", RecipientsRefused, False, None, SIZE),
    Row("RCPT", "552 5.2.3 length", RecipientsRefused, False, "5.2.3", SIZE),
    Row("body", "523 length", MessageRefused, False, None, SIZE),
    Row("body", "554 5.2.3 length", MessageRefused, False, "5.2.3", SIZE),
    Row("body", "552 5.2.2 mailbox full", MessageRefused, False, "5.2.2"),
    Row("body", "452 4.3.1 no space", MessageRefused, True, "4.3.1"),
    # Too many recipients at steps where another transaction cannot mend it.
    Row("RCPT", "452 too many recipients", RecipientsRefused, True, None, RECIPIENTS),
    Row("RCPT", "552 5.5.3 too many", RecipientsRefused, False, "5.5.3", RECIPIENTS),
    Row("RCPT", "552 5.2.2 mailbox full", RecipientsRefused, False, "5.2.2"),
    Row("body", "554 Too many recipients", MessageRefused, False, None, RECIPIENTS),
    Row("body", "550 5.5.3 no", MessageRefused, False, "5.5.3", RECIPIENTS),
    Row("MAIL", "451 4.4.2 idle", MessageRefused, True, "4.4.2"),
    Row("RCPT", "451 4.4.2 idle", RecipientsRefused, True, "4.4.2"),
    Row("body", "451 4.4.2 idle", MessageRefused, True, "4.4.2"),
    Row("MAIL", "503 5.5.1 sequence", MessageRefused, False, "5.5.1"),
]


@ALL_OFFERS
@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_reply_is_read_with_its_step_and_enhanced_code(row: Row, offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.fault(row.step, row.reply)
        async with make_backend(server) as backend:
            with pytest.raises(DeliveryError) as raised:
                await backend.send(outgoing())
    error = raised.value
    assert type(error) is row.error, error
    assert (error.temporary, error.enhanced) == (row.temporary, row.enhanced)
    code = int(row.reply[:3])
    assert error.code == (code if code >= 400 else None)
    for hint in (LOGIN, RECIPIENTS, SIZE):
        if hint not in row.hint:
            assert (hint in str(error)) is (row.hint == "use_tls" and hint is LOGIN)
    assert row.hint in str(error)
    assert not server.messages
    assert server.connections == 1


@pytest.mark.parametrize("offer", [OFFERS["pipelining"], OFFERS["nothing"]], ids=["pipelining", "nothing"])
@pytest.mark.parametrize(("reply", "taken"), [("354", True), ("350 send it", True), ("399", True), ("250 what", False)])
async def test_any_3yz_to_data_asks_for_the_content(reply: str, taken: bool, offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.data_reply = reply
        async with make_backend(server) as backend:
            if taken:
                await backend.send(outgoing())
            else:
                with pytest.raises(ConnectionFailed, match="unexpected reply"):
                    await backend.send(outgoing())
    assert len(server.messages) == taken


@ALL_OFFERS
@pytest.mark.parametrize("code", [250, 251, 252, 259, 299])
async def test_any_2yz_to_rcpt_accepts_the_recipient(code: int, offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.recipient_reply = f"{code} will do"
        async with make_backend(server) as backend:
            report = await backend.send(outgoing(to=addresses(2)))
    assert list(report.accepted) == addresses(2)
    assert server.messages[0].recipients == addresses(2)


@pytest.mark.parametrize("second", [b"550 no", b"251 ok", b"450 later", b"hello", b"25"])
def test_lines_of_one_reply_with_differing_codes_are_no_reply(second: bytes) -> None:
    reader = ReplyReader()
    assert reader.feed(b"250-ok\r\n" + second + b"\r\n") == []
    assert reader.fault


@pytest.mark.parametrize(
    ("code", "text", "enhanced"),
    [
        (552, "5.2.2 full", "5.2.2"),
        (552, "5.2.2", "5.2.2"),
        (452, "4.5.3\ttoo many", "4.5.3"),
        (250, "2.1.5 ok", "2.1.5"),
        (552, "4.2.2 full", None),
        (552, "5.2 full", None),
        (552, "5.2.2.1 full", None),
        (552, "full 5.2.2", None),
        (552, "3.2.2 full", None),
        (552, "", None),
    ],
)
def test_an_enhanced_code_begins_the_text_and_agrees_with_the_reply_code(
    code: int, text: str, enhanced: str | None
) -> None:
    assert Refusal(code, text).enhanced == enhanced


# Too many recipients (RFC 5321 section 4.5.3.1.10)


@pytest.mark.parametrize(
    ("reply", "limit"),
    [
        ("452 too many recipients", True),
        ("452 4.5.3 too many recipients", True),
        ("552 too many recipients", True),
        ("552 5.5.3 too many recipients", True),
        ("552 4.2.2 of another class", True),
        ("452 4.2.2 mailbox full", False),
        ("552 5.2.2 mailbox full", False),
        ("552 5.2.1 mailbox disabled", False),
        ("452 4.3.1 insufficient storage", False),
        ("552 5.3.4 too big", False),
        ("451 4.5.3 too many recipients", False),
        ("550 5.5.3 too many recipients", False),
        ("554 5.5.3 too many recipients", False),
    ],
)
def test_452_and_552_are_a_limit_unless_the_enhanced_code_says_otherwise(reply: str, limit: bool) -> None:
    code, _, text = reply.partition(" ")
    assert exceeds_recipient_limit(Refusal(int(code), text)) is limit


@ALL_OFFERS
@pytest.mark.parametrize("send", ["send", "send_pipelined"])
@pytest.mark.parametrize("reply", ["452 4.5.3 too many", "552 5.5.3 too many recipients", "552 no more"])
async def test_recipients_above_the_servers_limit_get_further_transactions(
    reply: str, send: str, offer: Sequence[str]
) -> None:
    with SmtpServer(capabilities=offer, recipient_limit=3) as server:
        server.limit_reply = reply
        async with make_backend(server) as backend:
            report = await getattr(backend, send)(outgoing(to=addresses(8)))
    assert [message.recipients for message in server.messages] == [
        addresses(8)[:3],
        addresses(8)[3:6],
        addresses(8)[6:],
    ]
    assert sorted(report.accepted) == addresses(8)
    assert not report.refused


@ALL_OFFERS
async def test_a_full_mailbox_is_final_whether_others_were_accepted_before_or_not(offer: Sequence[str]) -> None:
    """552 without an enhanced code means the count only behind an accepted recipient, so a second one settles it."""
    with SmtpServer(capabilities=offer) as server:
        server.fault("RCPT", "552 no room", nth=1)  # r0: nobody was accepted before
        server.fault("RCPT", "552 5.2.2 no room", nth=3)  # r2
        server.fault("RCPT", "552 no room", nth=4)  # r3, and then again as the only one
        server.fault("RCPT", "552 no room", nth=5)
        async with make_backend(server) as backend:
            report = await backend.send(outgoing(to=addresses(4)))
    assert [command.line for command in server.commands if command.verb == "RCPT"][4:] == ["RCPT TO:<r3@example.com>"]
    assert report.accepted == ("r1@example.com",)
    assert {address: refusal.temporary for address, refusal in report.refused.items()} == {
        "r0@example.com": False,
        "r2@example.com": False,
        "r3@example.com": False,
    }


@ALL_OFFERS
@pytest.mark.parametrize("reply", ["452 4.5.3 too many", "552 5.5.3 too many recipients"])
async def test_without_allow_partial_the_servers_limit_withholds_nothing(reply: str, offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer, recipient_limit=3) as server:
        server.limit_reply = reply
        async with make_backend(server, allow_partial=False) as backend:
            report = await backend.send(outgoing(to=addresses(8)))
    delivered = [address for message in server.messages for address in message.recipients]
    assert sorted(delivered) == addresses(8)
    assert sorted(report.accepted) == addresses(8)
    assert not report.refused


async def test_without_allow_partial_a_refusal_beside_the_limit_withholds_all() -> None:
    with SmtpServer(recipient_limit=3) as server:
        server.refuse("r1@example.com", 550)
        async with make_backend(server, allow_partial=False) as backend:
            with pytest.raises(RecipientsRefused):
                await backend.send(outgoing(to=addresses(8)))
    assert server.messages == []


# A session that ended while the connection was idle


@pytest.mark.parametrize("reset", [False, True], ids=["", "after-a-refusal"])
@ALL_OFFERS
@pytest.mark.parametrize("send", ["send", "send_pipelined"])
@pytest.mark.parametrize(
    "reply", ["451 4.4.2 idle for too long", "451 Timeout waiting for client input", "503 greet first", "530 log in"]
)
async def test_an_ended_session_gets_a_new_connection(reply: str, send: str, offer: Sequence[str], reset: bool) -> None:
    with SmtpServer(capabilities=offer) as server:
        async with make_backend(server, pool_size=1) as backend:
            first = outgoing(to=["gone@example.com" if reset else "to@example.com"])
            if reset:
                server.refuse("gone@example.com", 550)
                with pytest.raises(RecipientsRefused):
                    await backend.send(first)
            else:
                await backend.send(first)
            server.fault("MAIL", reply, nth=1)
            report = await getattr(backend, send)(outgoing(number=2))
            assert report.accepted == ("to@example.com",)
            assert backend.stats is not None
            assert (backend.stats.open, backend.stats.idle) == (1, 1)
    # A pipelined message may get 503 because of another one, so it is sent by itself first.
    pipelined_503 = reply.startswith("503") and send == "send_pipelined" and "CHUNKING" in offer
    assert server.connections == (1 if pipelined_503 else 2)
    assert len(server.messages) == (1 if reset else 2)


@ALL_OFFERS
@pytest.mark.parametrize("reply", ["451 4.7.1 greylisted", "450 4.4.1 later", "550 5.4.2 no"])
async def test_a_refused_sender_gets_no_new_connection(reply: str, offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        async with make_backend(server) as backend:
            await backend.send(outgoing())
            server.fault("MAIL", reply, nth=1)
            with pytest.raises(MessageRefused):
                await backend.send(outgoing(number=2))
    assert server.connections == 1


async def test_content_accepted_behind_a_refused_mail_is_not_sent_again() -> None:
    with SmtpServer() as server:
        async with make_backend(server) as backend:
            await backend.send(outgoing())
            server.fault("MAIL", "451 4.4.2 idle", nth=1)
            server.fault("RCPT", "250 ok", nth=1)
            server.fault("BDAT", "250 taken", nth=1)
            with pytest.raises(ConnectionFailed, match="although MAIL was not") as raised:
                await backend.send(outgoing(number=2))
    assert raised.value.uncertain
    assert server.connections == 1
