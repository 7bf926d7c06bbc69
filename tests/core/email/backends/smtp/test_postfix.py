"""SMTPBackend against Postfix with PIPELINING and CHUNKING, without CHUNKING, and without both."""

import asyncio
import random
from collections.abc import Iterator

import pytest
from support.messages import HEAD, outgoing
from support.postfix import Offer, Postfix

from openviper.core.email.backends import SMTPBackend
from openviper.core.email.errors import DeliveryError, MessageRefused, RecipientsRefused
from openviper.core.email.settings import EmailSettings

OFFERS = pytest.mark.parametrize("offer", ["chunking", "pipelining", "nothing"])


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with Postfix() as server:
        yield server


async def mailbox_after(postfix: Postfix, before: int, count: int) -> list[bytes]:
    return (await postfix.arrive(before + count))[before:]


def as_stored(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n")


@OFFERS
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_messages_of_every_size_arrive_unchanged(postfix: Postfix, offer: Offer, tls: bool) -> None:
    line = b".a line that begins with a dot\r\n..two\r\n.\r\n\r\nFrom the start\r\n"
    sizes = (0, 1, 100, 5_000, 20_000, 300_000)
    bodies = [b"%d\r\n" % number + line * (size // len(line)) for number, size in enumerate(sizes)]
    bodies.append(b"x\r\n" + (b"A" * 76 + b"\r\n") * (25 * 1024 * 1024 * 4 // 3 // 78))
    before = len(postfix.stored())
    async with SMTPBackend(EmailSettings(**postfix.settings(offer, use_tls=tls, pool_size=1))) as backend:
        for body in bodies:
            report = await backend.send(outgoing(body))
            assert report.response.startswith("250 2.0.0 Ok: ")
            assert "queued as" in report.response
    stored = await mailbox_after(postfix, before, len(bodies))
    for body in bodies:
        assert sum(message.endswith(as_stored(HEAD + body)) for message in stored) == 1, body[:20]


@OFFERS
async def test_refused_recipients_are_reported_and_the_connection_stays(postfix: Postfix, offer: Offer) -> None:
    before = len(postfix.stored())
    async with SMTPBackend(EmailSettings(**postfix.settings(offer, pool_size=1))) as backend:
        report = await backend.send(outgoing(to=["a@example.com", "gone@example.com"]))
        assert report.refused["gone@example.com"].code == 554
        for _ in range(3):
            with pytest.raises(RecipientsRefused):
                await backend.send(outgoing(to=["gone@example.com"]))
        assert (await backend.send(outgoing(to=["b@example.com"]))).accepted
        assert backend.stats is not None
        assert (backend.stats.open, backend.stats.reconnects) == (1, 0)
    assert len(await mailbox_after(postfix, before, 2)) == 2


@OFFERS
async def test_without_allow_partial_postfix_delivers_nothing(postfix: Postfix, offer: Offer) -> None:
    before = len(postfix.stored())
    settings = EmailSettings(**postfix.settings(offer, pool_size=1, allow_partial=False))
    async with SMTPBackend(settings) as backend:
        with pytest.raises(RecipientsRefused):
            await backend.send(outgoing(b"not this\r\n", to=["a@example.com", "gone@example.com"]))
        await backend.send(outgoing(b"this\r\n", to=["b@example.com"]))
    (stored,) = await mailbox_after(postfix, before, 1)
    assert stored.endswith(b"\n\nthis\n")


@OFFERS
async def test_concurrent_messages_arrive_once_each(postfix: Postfix, offer: Offer) -> None:
    before = len(postfix.stored())
    numbers = list(range(200))
    random.Random(3).shuffle(numbers)
    async with SMTPBackend(EmailSettings(**postfix.settings(offer, max_messages_per_connection=17))) as backend:
        await asyncio.gather(*(backend.send(outgoing(b"number %d.\r\n" % number)) for number in numbers))
    stored = await mailbox_after(postfix, before, len(numbers))
    assert sorted(int(message.rsplit(b" ", 1)[1].rstrip(b".\n")) for message in stored) == list(range(200))


async def test_a_message_above_postfixs_size_limit_is_not_begun(postfix: Postfix) -> None:
    async with SMTPBackend(EmailSettings(**postfix.settings())) as backend:
        with pytest.raises(MessageRefused, match=r"the server accepts at most 60,000,000 bytes"):
            await backend.send(outgoing((b"A" * 76 + b"\r\n") * 800_000))


async def test_postfix_accepts_international_addresses(postfix: Postfix) -> None:
    before = len(postfix.stored())
    async with SMTPBackend(EmailSettings(**postfix.settings())) as backend:
        await backend.send(outgoing(to=["jörg@example.com"]))
    (stored,) = await mailbox_after(postfix, before, 1)
    assert "Delivered-To: jörg@example.com".encode() in stored


@OFFERS
async def test_a_refused_relay_names_the_server(postfix: Postfix, offer: Offer) -> None:
    async with SMTPBackend(EmailSettings(**postfix.settings(offer))) as backend:
        with pytest.raises(DeliveryError) as raised:
            await backend.send(outgoing(to=["a@elsewhere.example.net"], sender=""))
    assert str(raised.value).startswith(f"127.0.0.1:{postfix.ports[offer]}: ")
