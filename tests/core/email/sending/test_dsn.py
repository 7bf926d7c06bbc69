"""``dsn=``: the parameters of RFC 3461 on the wire, in what is stored, and what follows where a server lacks them."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.smtpd import CAPABILITIES, SmtpServer

from openviper.conf import override
from openviper.core.email import (
    EmailMessageData,
    InvalidMessage,
    MessageEvent,
    send_email_sync,
    send_many,
    submit_email,
    subscribe,
)
from openviper.core.email.backends.smtp.commands import Capabilities, envelope_commands
from openviper.core.email.message import DsnRequest, Envelope, check_message
from openviper.core.email.message.serialiser import serialise_message_sync
from openviper.core.email.message.storage import decode, encode
from openviper.testing import Mailbox

SENDER = "shop@example.test"
OFFERED = Capabilities(pipelining=True, chunking=True, dsn=True)
MESSAGE: dict[str, Any] = {"recipients": "a+b@example.test", "subject": "Hello", "text": "Hi", "dsn": "failure,delay"}
MANY = 150


@pytest.fixture
async def smtpd() -> AsyncIterator[SmtpServer]:
    with (
        SmtpServer(capabilities=(*CAPABILITIES, "DSN")) as server,
        override(EMAIL=server.settings(default_sender=SENDER)),
    ):
        yield server


def lines(server: SmtpServer, verb: str) -> list[str]:
    return [command.line for command in server.commands if command.verb == verb]


async def test_the_envelope_asks_for_notices(smtpd: SmtpServer) -> None:
    receipt = await submit_email(**MESSAGE)
    (mail,), (rcpt,) = lines(smtpd, "MAIL"), lines(smtpd, "RCPT")
    assert re.fullmatch(rf"MAIL FROM:<{SENDER}> SIZE=\d+ RET=HDRS ENVID={receipt.message_id[1:-1]}", mail)
    assert rcpt == "RCPT TO:<a+b@example.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;a+2Bb@example.test"
    assert receipt.dsn is True
    assert receipt.outcome == "delivered"


@pytest.mark.parametrize(
    ("dsn", "mail", "rcpt"),
    [
        ("never", "RET=HDRS", "NOTIFY=NEVER"),
        (" Success , FULL", "RET=FULL", "NOTIFY=SUCCESS"),
        (["delay", "failure", "delay"], "RET=HDRS", "NOTIFY=FAILURE,DELAY"),
        ({"success", "failure", "delay", "full"}, "RET=FULL", "NOTIFY=SUCCESS,FAILURE,DELAY"),
    ],
)
async def test_each_word_has_its_parameter(smtpd: SmtpServer, dsn: Any, mail: str, rcpt: str) -> None:
    await submit_email(**MESSAGE | {"dsn": dsn})
    assert f" {mail} " in lines(smtpd, "MAIL")[0]
    assert f" {rcpt} " in lines(smtpd, "RCPT")[0]


async def test_without_dsn_nothing_is_asked(smtpd: SmtpServer) -> None:
    receipt = await submit_email(**MESSAGE | {"dsn": None})
    assert "RET=" not in lines(smtpd, "MAIL")[0]
    assert lines(smtpd, "RCPT") == ["RCPT TO:<a+b@example.test>"]
    assert receipt.dsn is None


@pytest.mark.parametrize("pipeline", [False, True])
async def test_each_message_of_many_has_its_own_request(smtpd: SmtpServer, pipeline: bool) -> None:
    data = EmailMessageData("b@example.test", "Hello", text="Hi", dsn=["success"])
    plain = {key: value for key, value in MESSAGE.items() if key != "dsn"} | {"recipients": "c@example.test"}
    receipts = [each async for each in send_many([MESSAGE, data, plain], pipeline=pipeline)]
    assert {each.index: each.dsn for each in receipts} == {0: True, 1: True, 2: None}
    by_recipient = {message.recipients[0]: message.options for message in smtpd.messages}
    ids = {each.index: each.message_id[1:-1] for each in receipts}
    assert f"RET=HDRS ENVID={ids[0]}" in by_recipient["a+b@example.test"]
    assert f"RET=HDRS ENVID={ids[1]}" in by_recipient["b@example.test"]
    assert "ENVID" not in by_recipient["c@example.test"]
    assert sorted(line.partition(" NOTIFY=")[2] for line in lines(smtpd, "RCPT")) == [
        "",
        "FAILURE,DELAY ORCPT=rfc822;a+2Bb@example.test",
        "SUCCESS ORCPT=rfc822;b@example.test",
    ]


async def test_every_envelope_of_a_message_asks(smtpd: SmtpServer) -> None:
    receipt = await submit_email(**MESSAGE | {"recipients": [f"r{number}@example.test" for number in range(MANY)]})
    assert [len(message.recipients) for message in smtpd.messages] == [100, 50]
    assert all(" NOTIFY=FAILURE,DELAY ORCPT=rfc822;r" in line for line in lines(smtpd, "RCPT"))
    assert receipt.dsn is True


async def test_a_server_without_dsn_gets_the_message_without_it(caplog: pytest.LogCaptureFixture) -> None:
    events: list[MessageEvent] = []
    end = subscribe(events.append)
    try:
        with SmtpServer() as server, override(EMAIL=server.settings(default_sender=SENDER)):
            receipts = [await submit_email(**MESSAGE) for _ in range(3)]
    finally:
        end()
    assert [receipt.dsn for receipt in receipts] == [False] * 3
    assert lines(server, "RCPT") == ["RCPT TO:<a+b@example.test>"] * 3
    assert not any("RET=" in line or "ENVID=" in line for line in lines(server, "MAIL"))
    delivered = [event.detail for event in events if event.kind == "delivered"]
    assert len(delivered) == 3
    assert all(
        detail.endswith("; without delivery notices, because the server does not offer DSN") for detail in delivered
    )
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [
        f"127.0.0.1:{server.port} does not offer DSN (RFC 3461): messages with dsn= are sent without it"
    ]


async def test_a_redirected_copy_asks_for_its_own_recipient(smtpd: SmtpServer) -> None:
    settings = smtpd.settings(default_sender=SENDER, redirect_to=["test@example.test"])
    with override(EMAIL=settings):
        receipt = await submit_email(**MESSAGE)
    assert lines(smtpd, "RCPT") == ["RCPT TO:<test@example.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;test@example.test"]
    assert receipt.dsn is True


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("failed", r"dsn: 'failed' is not allowed; did you mean 'failure'\?; give never, success, "),
        ("", "dsn: '' is not allowed"),
        ("full", "dsn: 'full' does not say when to notify; write dsn=\"failure,delay\""),
        ([], "dsn: .* does not say when to notify"),
        ("never,failure", 'dsn: "never" excludes every other word'),
        ("never,full", 'dsn: "never" excludes every other word'),
        ("failure\r\nRCPT TO:<x@example.test>", r"dsn: 'failure\\r\\nRCPT "),
        (["failure", 4], "dsn: 4 is not allowed"),
        (True, "dsn: must be text or a list of words, not bool"),
        ({"notify": "failure"}, "dsn: must be text or a list of words, not dict"),
    ],
)
async def test_a_wrong_value_is_refused_before_anything_is_sent(mailbox: Mailbox, given: Any, problem: str) -> None:
    with override(EMAIL={"default_sender": SENDER}), pytest.raises(InvalidMessage, match=f"^{problem}"):
        await submit_email(**MESSAGE | {"dsn": given})
    assert len(mailbox) == 0


async def test_a_request_that_could_not_work_is_refused(mailbox: Mailbox) -> None:
    with override(EMAIL={"default_sender": SENDER}):
        with pytest.raises(InvalidMessage, match=r'^dsn: envelope_sender is "", so notices have no address'):
            await submit_email(**MESSAGE, envelope_sender="")
        with pytest.raises(InvalidMessage, match=r'^dsn: "full" would return the content of a sensitive message'):
            await submit_email(**MESSAGE | {"dsn": "failure,full"}, sensitive=True)
        await submit_email(**MESSAGE | {"dsn": "never"}, envelope_sender="")
        await submit_email(**MESSAGE, sensitive=True)
    assert [message.outgoing.envelope.dsn.conditions for message in mailbox if message.outgoing.envelope.dsn] == [
        ("never",),
        ("failure", "delay"),
    ]


async def test_it_travels_in_what_a_worker_may_ignore(mailbox: Mailbox) -> None:
    with override(EMAIL={"default_sender": SENDER}):
        assert await asyncio.to_thread(send_email_sync, **MESSAGE)
    prepared = mailbox.last.outgoing.prepared
    stored = decode(encode(prepared))
    assert (dict(stored.extra), dict(stored.must)) == ({"dsn": ("failure", "delay")}, {})
    request = DsnRequest(("failure", "delay"), False, stored.message_id[1:-1])
    assert serialise_message_sync(stored, max_message_bytes=10_000).envelope.dsn == request


@pytest.mark.parametrize("junk", [7, "failure", [], ["full"], ["x\r\nQUIT"], {"failure": 1}, [["failure"]]])
def test_what_no_version_has_written_asks_for_nothing(junk: Any) -> None:
    """Whoever can write to the broker is not trusted, and a message is not lost for a notice."""
    data = EmailMessageData("a@example.test", "Hello", text="Hi", sender=SENDER)
    stored = check_message(data, default_sender=None)._replace(extra={"dsn": junk})
    assert serialise_message_sync(stored, max_message_bytes=10_000).envelope.dsn is None


def test_what_is_too_long_or_not_ascii_is_left_out_or_written_as_utf_8() -> None:
    def commands(recipient: str, envelope_id: str) -> list[str]:
        envelope = Envelope(SENDER, (recipient,), dsn=DsnRequest(("failure",), False, envelope_id))
        return [command.decode() for command in envelope_commands(envelope, 1, OFFERED)]

    mail, rcpt = commands("jörg+=\\@example.test", "i" * 101)
    assert mail == f"MAIL FROM:<{SENDER}> SMTPUTF8 RET=HDRS\r\n"
    assert rcpt.endswith(r" NOTIFY=FAILURE ORCPT=utf-8;j\x{F6}rg\x{2B}\x{3D}\x{5C}@example.test" + "\r\n")
    mail, rcpt = commands(f"{'+' * 200}@example.test", "jörg@example.test")
    assert mail.endswith(" RET=HDRS\r\n")
    assert rcpt.endswith("> NOTIFY=FAILURE\r\n")
    # The limit is one of the parameter as it is sent.
    assert commands("a@example.test", "+" * 34)[0].endswith(" RET=HDRS\r\n")
    assert commands("a@example.test", "+" * 33)[0].endswith(f" ENVID={'+2B' * 33}\r\n")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="<>"), min_size=1, max_size=60))
def test_xtext_is_read_back_as_it_was_written(text: str) -> None:
    envelope = Envelope(SENDER, (text,), dsn=DsnRequest(("failure",), False, text))
    mail, rcpt = (command.decode() for command in envelope_commands(envelope, 1, OFFERED))
    for line, name in ((mail, "ENVID="), (rcpt, "ORCPT=rfc822;")):
        encoded = line.removesuffix("\r\n").rpartition(f" {name}")[2]
        assert re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+", encoded)
        assert re.sub(r"\+([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), encoded) == text
