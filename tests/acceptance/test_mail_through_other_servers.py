"""The same mail through Exim, Dovecot's submission service, OpenSMTPD and Postfix: real servers of Debian.

====================  =======  =======  =========  =======
scenario              Exim     Dovecot  OpenSMTPD  Postfix
====================  =======  =======  =========  =======
1, 10, 150 people     yes      yes      yes        yes
one, all refused      yes      yes      yes        yes
20 MB                 yes      yes      yes        yes
STARTTLS              yes      yes      no (1)     yes
AUTH right, wrong     yes      yes      no (1)     no (2)
2 connections only    yes      yes      no (3)     yes
====================  =======  =======  =========  =======

1. The TLS handshake of Debian 12's OpenSMTPD fails with an internal error of OpenSSL 3, and its AUTH needs TLS.
2. Postfix leaves passwords to another program (Dovecot or Cyrus SASL).
3. OpenSMTPD limits connections only by the number of its descriptors.
"""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from support.dovecot import Dovecot
from support.exim import Exim
from support.messages import outgoing
from support.opensmtpd import OpenSmtpd
from support.postfix import Postfix

from openviper.conf import override
from openviper.core.email import AuthenticationFailed, RecipientsRefused, submit_email
from openviper.core.email.backends import DeliveryReport, EmailSettings, SMTPBackend
from openviper.core.email.backends.memory import sent
from openviper.core.email.message import OutgoingMessage

Server = Exim | Dovecot | OpenSmtpd | Postfix
SERVERS: dict[str, type[Server]] = {"exim": Exim, "dovecot": Dovecot, "opensmtpd": OpenSmtpd, "postfix": Postfix}
WITH_TLS = ("exim", "dovecot", "postfix")
WITH_AUTH = ("exim", "dovecot")
TEXT = "Dear Ann,\n\n.\n..a line that begins with dots\nFrom here on, é and 日本\n\nYours, the shop\n"
MB = 1024 * 1024


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with SERVERS[request.param]() as started:
        yield started


def settings_of(server: Server, **more: Any) -> EmailSettings:
    login = server.login() if isinstance(server, Dovecot) else {}
    return EmailSettings(**(server.settings() | login | more))


def people(count: int) -> list[str]:
    return [f"r{number}@example.com" for number in range(count)]


async def serialised(to: list[str], **more: Any) -> OutgoingMessage:
    """A message as every backend is given it."""
    sent.clear()
    with override(EMAIL={"backend": "MemoryBackend", "default_sender": "Shop <shop@example.com>"}):
        await submit_email(to[:1], "Grüße from the shop", TEXT, f"<p>{TEXT}</p>", bcc=to[1:], **more)
    (message,) = sent
    return message


def assert_arrived_once(server: Server, message: OutgoingMessage, recipients: list[str]) -> None:
    """Each recipient has it once, and it is what the serialiser made, byte for byte, apart from the line ends."""
    expected = b"".join(message.content).replace(b"\r\n", b"\n")
    stored = server.take(len(recipients))
    assert sorted(each for copy in stored for each in copy.recipients) == sorted(recipients)
    for copy in stored:
        assert copy.content == expected


@pytest.mark.parametrize("count", [1, 10, 150])
async def test_every_recipient_gets_the_bytes_once(server: Server, count: int) -> None:
    message = await serialised(people(count))
    async with SMTPBackend(settings_of(server)) as backend:
        report = await backend.send(message)
    assert sorted(report.accepted) == sorted(people(count))
    assert not report.refused
    assert_arrived_once(server, message, people(count))


async def test_one_refused_recipient_does_not_stop_the_others(server: Server) -> None:
    message = await serialised(["a@example.com", "gone@example.com", "b@example.com"])
    async with SMTPBackend(settings_of(server)) as backend:
        report = await backend.send(message)
    assert [*report.refused] == ["gone@example.com"]
    assert report.refused["gone@example.com"].code == server.refusal_code
    assert_arrived_once(server, message, ["a@example.com", "b@example.com"])


async def test_when_all_are_refused_nothing_is_sent_and_the_connection_is_kept(server: Server) -> None:
    refused, taken = await serialised(["gone@example.com"]), await serialised(["a@example.com"])
    async with SMTPBackend(settings_of(server, pool_size=1)) as backend:
        with pytest.raises(RecipientsRefused) as raised:
            await backend.send(refused)
        await backend.send(taken)
        assert backend.stats is not None
        assert (backend.stats.open, backend.stats.reconnects) == (1, 0)
    assert [*raised.value.refused] == ["gone@example.com"]
    assert raised.value.refused["gone@example.com"].code == server.refusal_code
    assert_arrived_once(server, taken, ["a@example.com"])


async def test_twenty_megabytes_arrive(server: Server) -> None:
    content = random.Random(20).randbytes(20 * MB)
    message = await serialised(["a@example.com"], attachments=[("large.bin", content)])
    async with SMTPBackend(settings_of(server)) as backend:
        await backend.send(message)
    assert_arrived_once(server, message, ["a@example.com"])


@pytest.mark.parametrize("server", WITH_TLS, indirect=True)
async def test_mail_over_starttls_arrives(server: Server) -> None:
    message = await serialised(people(2))
    async with SMTPBackend(settings_of(server, use_tls=True)) as backend:
        await backend.send(message)
    assert_arrived_once(server, message, people(2))


@pytest.mark.parametrize("server", WITH_AUTH, indirect=True)
async def test_the_right_password_logs_in(server: Exim | Dovecot) -> None:
    message = await serialised(["a@example.com"])
    async with SMTPBackend(settings_of(server, **server.login())) as backend:
        await backend.send(message)
    assert_arrived_once(server, message, ["a@example.com"])


@pytest.mark.parametrize("server", WITH_AUTH, indirect=True)
async def test_a_wrong_password_is_one_failed_login(server: Exim | Dovecot) -> None:
    """Three methods are offered; fail2ban and its like count the failures of all of them."""
    before = server.failed_logins()
    settings = settings_of(server, **(server.login() | {"password": "wrong"}))
    async with SMTPBackend(settings) as backend:
        with pytest.raises(AuthenticationFailed, match="AUTH: 535") as raised:
            await backend.send(await serialised(["a@example.com"]))
    assert not raised.value.temporary
    assert server.failed_logins(before + 1) == before + 1


@pytest.mark.parametrize("server", ["exim"], indirect=True)
def test_mail_over_uvloop_arrives(server: Server) -> None:
    async def main() -> None:
        for count in (1, 10, 150):
            message = await serialised(people(count))
            async with SMTPBackend(settings_of(server, use_tls=count == 10)) as backend:
                await backend.send(message)
            assert_arrived_once(server, message, people(count))
        large = await serialised(["a@example.com"], attachments=[("large.bin", random.Random(20).randbytes(20 * MB))])
        async with SMTPBackend(settings_of(server)) as backend:
            await backend.send(large)
        assert_arrived_once(server, large, ["a@example.com"])

    uvloop.run(main())


@pytest.fixture(params=[Exim, Dovecot, Postfix])
def narrow(request: pytest.FixtureRequest) -> Iterator[Exim | Dovecot | Postfix]:
    with request.param(connection_limit=2) as started:
        yield started


async def test_a_server_that_allows_two_connections_costs_no_message(narrow: Exim | Dovecot | Postfix) -> None:
    """200 sends at once over a pool of five: everybody has the mail once, whatever the server refused."""
    login = narrow.login() if isinstance(narrow, Dovecot) else {}
    people = [f"r{number}@example.com" for number in range(200)]
    async with SMTPBackend(EmailSettings(**narrow.settings(pool_size=5, **login))) as backend:
        outcomes = await asyncio.gather(
            *(backend.send(outgoing(to=[address], number=number)) for number, address in enumerate(people)),
            return_exceptions=True,
        )
    assert [outcome for outcome in outcomes if not isinstance(outcome, DeliveryReport)] == []
    stored = await asyncio.to_thread(narrow.take, 200)
    assert sorted(each for message in stored for each in message.recipients) == sorted(people)
