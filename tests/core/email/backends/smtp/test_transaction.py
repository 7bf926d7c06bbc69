"""Transactions: the order of commands, the content, and the outcome for each reply and failure."""

import asyncio
import random
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from support.certificates import ca_file
from support.messages import HEAD, outgoing
from support.patience import PATIENCE
from support.rawserver import Peer, greet, raw_server
from support.smtpd import CAPABILITIES, SmtpServer, Tls
from support.stalls import watched_loop

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends import SMTPBackend
from openviper.core.email.backends.smtp.errors import StaleConnection
from openviper.core.email.backends.smtp.handshake import Handshake
from openviper.core.email.backends.smtp.transaction import TransactionOptions, run_transaction
from openviper.core.email.errors import (
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    InvalidAddress,
    InvalidMessage,
    MessageRefused,
    RecipientsRefused,
)
from openviper.core.email.message import EmailMessageData, OutgoingMessage, check_message
from openviper.core.email.message.serialiser import serialise_message as serialised
from openviper.core.email.settings import EmailSettings

CHUNKING, PIPELINING, NOTHING = CAPABILITIES, ("PIPELINING", "SIZE 100000000"), ()
OFFERS = pytest.mark.parametrize(
    "offer", [CHUNKING, PIPELINING, NOTHING, ("CHUNKING",)], ids=["chunking", "pipelining", "nothing", "only-chunking"]
)
MEGABYTE = 1024 * 1024


@asynccontextmanager
async def backend_for(port: int, **settings: object) -> AsyncIterator[SMTPBackend]:
    async with SMTPBackend(EmailSettings(host="127.0.0.1", port=port, **settings)) as backend:
        yield backend


def large_body(size: int) -> bytes:
    line = b".dots and text " * 5 + b"\r\n"
    return (line * (size // len(line) + 1))[: size - 2].rstrip(b"\r\n") + b"\r\n"


# The order of commands


async def test_a_small_message_is_one_flight_with_pipelining_and_chunking() -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        flight = [await peer.line() for _ in range(4)]
        length = int(flight[3].split()[1])
        content = await peer.exactly(length)  # without a reply so far
        assert flight[3] == b"BDAT %d LAST" % length
        assert content == b"".join(outgoing().content)
        await peer.say(b"250 sender", b"250 first", b"550 no such user", b"250 taken")

    async with raw_server(converse) as port, backend_for(port) as backend:
        report = await backend.send(outgoing(to=["a@example.com", "b@example.com"]))
    assert report.accepted == ("a@example.com",)
    assert report.refused["b@example.com"].code == 550
    assert report.response == "250 taken"


@pytest.mark.parametrize("why", ["larger than 256 kB", "one_flight=False", "allow_partial=False"])
async def test_the_content_waits_for_the_replies_to_rcpt_if_it_must(why: str) -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        assert [(await peer.line())[:4] for _ in range(3)] == [b"MAIL", b"RCPT", b"RCPT"]
        await peer.nothing_comes()
        await peer.say(b"250 sender", b"250 first", b"250 second")
        _, length, last = (await peer.line()).split()
        await peer.exactly(int(length))
        assert last == b"LAST"
        await peer.say(b"250 taken")

    settings = {"one_flight": {"one_flight": False}, "allow_partial": {"allow_partial": False}}.get(why[:-6], {})
    body = large_body(300_000) if why.startswith("larger") else b"small\r\n"
    async with raw_server(converse) as port, backend_for(port, **settings) as backend:
        report = await backend.send(outgoing(body, to=["a@example.com", "b@example.com"]))
    assert len(report.accepted) == 2


async def test_with_only_pipelining_the_content_is_the_second_flight() -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING")
        assert [(await peer.line())[:4] for _ in range(4)] == [b"MAIL", b"RCPT", b"RCPT", b"DATA"]
        await peer.nothing_comes()
        await peer.say(b"250 sender", b"250 first", b"450 later", b"354 go")
        await peer.until(b"\r\n.\r\n")
        await peer.say(b"250 taken")

    async with raw_server(converse) as port, backend_for(port) as backend:
        report = await backend.send(outgoing(to=["a@example.com", "b@example.com"]))
    assert report.accepted == ("a@example.com",)


@pytest.mark.parametrize("chunking", [False, True])
async def test_without_pipelining_each_command_waits_for_its_reply(chunking: bool) -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, *(["CHUNKING"] if chunking else []))
        for verb, answer in ((b"MAIL", b"250"), (b"RCPT", b"250"), (b"RCPT", b"550")):
            assert (await peer.line()).startswith(verb)
            await peer.nothing_comes()
            await peer.say(answer)
        command = await peer.line()
        if chunking:
            await peer.exactly(int(command.split()[1]))
        else:
            assert command == b"DATA"
            await peer.nothing_comes()
            await peer.say(b"354 go")
            await peer.until(b"\r\n.\r\n")
        await peer.say(b"250 taken")

    async with raw_server(converse) as port, backend_for(port) as backend:
        report = await backend.send(outgoing(to=["a@example.com", "b@example.com"]))
    assert report.accepted == ("a@example.com",)


async def test_no_content_is_sent_before_the_reply_to_rset() -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        await peer.line(), await peer.line()
        await peer.exactly(int((await peer.line()).split()[1]))
        await peer.say(b"250", b"550 no such user", b"503 no recipients")
        assert [(await peer.line())[:4] for _ in range(3)] == [b"RSET", b"MAIL", b"RCPT"]
        await peer.nothing_comes()
        await peer.say(b"250", b"250", b"250")
        await peer.exactly(int((await peer.line()).split()[1]))
        await peer.say(b"250 taken")

    async with raw_server(converse) as port, backend_for(port) as backend:
        with pytest.raises(RecipientsRefused):
            await backend.send(outgoing())
        assert (await backend.send(outgoing())).response == "250 taken"


# The content


@OFFERS
async def test_any_content_arrives_unchanged(offer: Sequence[str]) -> None:
    """Send dots, line ends and every byte; small, and around the sizes where the commands change."""
    dice = random.Random(5)
    parts = [b"\r\n", b".", b"..", b".\r\n", b"text", b"\r\n.\r\n", bytes(set(range(256)) - {10, 13})]
    bodies = [b"".join(dice.choices(parts, k=dice.randrange(60))) + b"\r\n" for _ in range(40)]
    bodies += [
        large_body(size - len(HEAD)) for edge in (65536, 262144, MEGABYTE) for size in (edge - 1, edge, edge + 1)
    ]
    with SmtpServer(capabilities=offer) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            for body in bodies:
                await backend.send(outgoing(body))
        received = await server.arrive(len(bodies))
    assert [message.content for message in received] == [HEAD + body for body in bodies]
    assert {message.via for message in received} == {"BDAT" if "CHUNKING" in offer else "DATA"}


async def with_attachment(size: int) -> OutgoingMessage:
    """Return a message as ``send_email`` prepares it, with an attachment of ``size`` bytes."""
    attachment = AttachmentData("photos.zip", random.Random(size).randbytes(size))
    data = EmailMessageData(["to@example.com"], "Photos", text="Hello.", attachments=[attachment])
    return await serialised(check_message(data, default_sender="from@example.com"), max_message_bytes=100 * MEGABYTE)


async def check_arrival(message: OutgoingMessage, offer: Sequence[str]) -> None:
    """Send ``message`` to a server that offers ``offer``, and compare what arrives."""
    with SmtpServer(capabilities=offer) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(message)
        (received,) = await server.arrive(1)
    assert received.content == b"".join(message.content)


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_a_reply_longer_than_the_buffer_is_read_completely(tls: bool) -> None:
    lines = [b"250-" + b"%03d " % number * 50 for number in range(120)]  # 24 kB at once

    async def converse(peer: Peer) -> None:
        await greet(peer, "PIPELINING", "CHUNKING")
        for _ in range(2):
            flight = [await peer.line() for _ in range(3)]
            await peer.exactly(int(flight[2].split()[1]))
            await peer.say(b"250 sender", b"250 recipient", *lines, b"250 taken")

    settings: dict[str, object] = {"use_ssl": True, "tls_ca_file": str(ca_file())} if tls else {}
    async with raw_server(converse, tls=tls) as port, backend_for(port, **settings) as backend:
        for _ in range(2):
            report = await backend.send(outgoing())
            assert report.response.startswith("250 000 000 ")


@OFFERS
async def test_an_attachment_of_25_megabytes_is_encoded_while_it_is_sent(offer: Sequence[str]) -> None:
    message = await with_attachment(25 * MEGABYTE)
    await check_arrival(message, offer)


@OFFERS
@pytest.mark.parametrize("read", [0, 100_000, 900_000])
async def test_an_interrupted_attachment_is_sent_again_unchanged(offer: Sequence[str], read: int) -> None:
    """Close the connection inside the body, and send the same message on a new one."""
    cut = asyncio.Event()

    async def converse(peer: Peer) -> None:
        await greet(peer, *offer)
        if cut.is_set():
            await peer.line()
            return
        cut.set()
        while not (await peer.line()).startswith((b"DATA", b"BDAT")):
            await peer.say(b"250 go on")
        await peer.say(*([b"354 go"] if "CHUNKING" not in offer else []))
        await peer.exactly(read)

    message = await with_attachment(8 * MEGABYTE)
    async with raw_server(converse) as port, backend_for(port) as backend:
        with pytest.raises(ConnectionFailed) as raised:
            await backend.send(message)
        assert not raised.value.uncertain
    await check_arrival(message, offer)


@OFFERS
@pytest.mark.parametrize("tls", ["none", "starttls"])
async def test_25_megabytes_arrive_unchanged(offer: Sequence[str], tls: Tls) -> None:
    body = large_body(25 * MEGABYTE)
    chunks = [body[at : at + 233_472] for at in range(0, len(body), 233_472)]
    with SmtpServer(capabilities=offer, tls=tls) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(outgoing(chunks))
        (received,) = await server.arrive(1)
    assert received.content == HEAD + body


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("offer", [CHUNKING, PIPELINING], ids=["chunking", "pipelining"])
@pytest.mark.parametrize("attached", [False, True], ids=["written", "attached"])
async def test_a_large_message_to_a_slow_server_is_not_buffered(
    offer: Sequence[str], tls: bool, attached: bool
) -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, *offer)
        await peer.until(b"DATA\r\n" if offer is PIPELINING else b"RCPT TO:<to@example.com>\r\n")
        await peer.say(b"250", b"250", *([b"354 go"] if offer is PIPELINING else []))
        await asyncio.sleep(0.2)
        for _ in range(16):  # no more than is sent before the reply to the first chunk
            assert await peer.exactly(2**16)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)

    peaks: list[int] = []
    message = await with_attachment(25 * MEGABYTE) if attached else outgoing(large_body(25 * MEGABYTE))
    tls_settings = {"use_ssl": True, "tls_ca_file": str(ca_file())} if tls else {}
    async with raw_server(converse, tls=tls, limit=2**14) as port:
        settings = EmailSettings(host="127.0.0.1", port=port, **tls_settings)
        # Connected before, so that the TLS buffers of both ends are not counted.
        connection = await (await Handshake.create(settings)).run()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(StaleConnection):
                await run_transaction(connection, message, TransactionOptions())
        finally:
            tracemalloc.stop()
    assert len(peaks) == 16
    assert max(peaks) < 2 * MEGABYTE  # the server's end included


@OFFERS
@pytest.mark.parametrize("attached", [False, True], ids=["written", "attached"])
async def test_a_large_message_does_not_block_the_loop(offer: Sequence[str], attached: bool) -> None:
    """Check that no step takes more than a small part of the message's processor time on the loop."""
    message = await with_attachment(25 * MEGABYTE) if attached else outgoing(large_body(25 * MEGABYTE))
    with SmtpServer(capabilities=offer) as server:
        settings = EmailSettings(**server.settings())
        async with SMTPBackend(settings) as backend, watched_loop(time.thread_time) as watch:
            begin = time.thread_time()
            await backend.send(message)
            whole = time.thread_time() - begin
    assert 0 < watch.longest < whole / 3, f"{watch.longest:.3f} s of {whole:.3f} s"


async def test_a_message_without_content_arrives() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(outgoing().__class__(outgoing().prepared, outgoing().envelope, (), 0))
        (received,) = await server.arrive(1)
    assert received.content == b""


async def test_content_with_a_bare_line_feed_is_not_sent() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(InvalidMessage):
                await backend.send(outgoing(b"a\n.\n\r\n"))
            await backend.send(outgoing())
    assert server.verbs.count("MAIL") == 1


# Recipients and limits


@OFFERS
async def test_one_refused_recipient_does_not_stop_the_others(
    offer: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.refuse("gone@example.com", 550)
        server.refuse("full@example.com", 450)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            report = await backend.send(outgoing(to=["a@example.com", "gone@example.com", "full@example.com"]))
        (received,) = await server.arrive(1)
    assert report.accepted == ("a@example.com",)
    assert {address: refusal.code for address, refusal in report.refused.items()} == {
        "gone@example.com": 550,
        "full@example.com": 450,
    }
    assert received.recipients == ["a@example.com"]
    assert [record.getMessage() for record in caplog.records if record.name == "openviper.email"] == [
        "message <1@example.com>: 2 of 3 recipients refused (1 x 450, 1 x 550)"
    ]


@OFFERS
async def test_all_recipients_refused_raises_and_the_connection_stays(offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.refuse("gone@example.com", 550)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(RecipientsRefused) as raised:
                await backend.send(outgoing(to=["gone@example.com"]))
            await backend.send(outgoing(number=2))
    assert raised.value.refused["gone@example.com"].code == 550
    assert not raised.value.temporary
    assert server.connections == 1
    assert server.verbs.count("RSET") == 1
    assert len(server.messages) == 1


@OFFERS
async def test_without_allow_partial_one_refused_recipient_sends_nothing(offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.refuse("gone@example.com", 550)
        async with SMTPBackend(EmailSettings(**server.settings(allow_partial=False))) as backend:
            with pytest.raises(RecipientsRefused) as raised:
                await backend.send(outgoing(to=["a@example.com", "gone@example.com"]))
            await backend.send(outgoing(number=2))
    assert raised.value.accepted == ("a@example.com",)
    assert [message.recipients for message in server.messages] == [["to@example.com"]]
    assert server.connections == 1


async def test_354_without_accepted_recipients_is_answered_with_a_lone_dot() -> None:
    with SmtpServer(capabilities=PIPELINING) as server:
        server.refuse("gone@example.com", 550)
        server.fault("DATA", "354 go ahead", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(RecipientsRefused):
                await backend.send(outgoing(to=["gone@example.com"]))
        assert server.verbs[-3:] == ["DATA", ".", "QUIT"]


@pytest.mark.parametrize("offer", [("SIZE 2000", "PIPELINING", "CHUNKING"), ("SIZE 2000",)])
async def test_a_message_above_the_servers_size_is_not_begun_and_the_largest_part_is_named(
    offer: Sequence[str],
) -> None:
    attachments = [AttachmentData("small.txt", b"x"), AttachmentData("film.mp4", b"x" * 4000)]
    with SmtpServer(capabilities=offer) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(MessageRefused, match=r"at most 2,000 bytes.*'film\.mp4' with 4,000 bytes") as raised:
                await backend.send(outgoing(large_body(4000), attachments=attachments))
            await backend.send(outgoing(number=2))
    assert not raised.value.temporary
    assert server.verbs.count("MAIL") == 1
    assert server.messages[0].options == f"SIZE={len(server.messages[0].content)}"


async def test_an_international_address_needs_smtputf8() -> None:
    with SmtpServer() as able, SmtpServer(capabilities=("PIPELINING", "CHUNKING")) as unable:
        async with SMTPBackend(EmailSettings(**able.settings())) as backend:
            await backend.send(outgoing(to=["jörg@example.com"]))
        async with SMTPBackend(EmailSettings(**unable.settings())) as backend:
            with pytest.raises(MessageRefused, match="SMTPUTF8") as raised:
                await backend.send(outgoing(to=["jörg@example.com"]))
    assert not raised.value.temporary
    assert able.messages[0].recipients == ["jörg@example.com"]
    assert able.messages[0].options.endswith(" SMTPUTF8")
    assert "MAIL" not in unable.verbs


async def test_an_address_that_would_add_a_command_is_refused_before_any_byte() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(InvalidAddress):
                await backend.send(outgoing(to=["a@example.com>\r\nRCPT TO:<evil@example.com"]))
            await backend.send(outgoing())
    assert server.verbs.count("MAIL") == 1


# Lost connections


@pytest.mark.parametrize("offer", [CHUNKING, NOTHING], ids=["chunking", "nothing"])
async def test_a_message_counts_as_accepted_only_with_the_complete_reply(offer: Sequence[str]) -> None:
    """Cut the server's replies off after each of their bytes."""
    answers = [b"250 2.1.0 sender\r\n", b"250 2.1.5 recipient\r\n"]
    answers += [b"250 2.0.0 taken\r\n"] if offer else [b"354 go\r\n", b"250 2.0.0 taken\r\n"]
    total = sum(map(len, answers))
    left = 0

    async def converse(peer: Peer) -> None:
        await greet(peer, *offer)
        budget = left
        for index, answer in enumerate(answers):
            if not offer and index == 3:
                await peer.until(b"\r\n.\r\n")
            elif not offer or index == 0:
                await peer.line()
            if index == 0 and offer:
                await peer.line()
                await peer.exactly(int((await peer.line()).split()[1]))
            peer.writer.write(answer[:budget])
            budget -= len(answer)
            if budget < 0:
                break
        await peer.writer.drain()
        peer.writer.write_eof()
        await peer.reader.read()

    async with raw_server(converse) as port:
        for left in range(0, total + 1, 3 if offer else 1):
            async with backend_for(port, pool_size=1) as backend:
                if left == total:
                    assert (await backend.send(outgoing())).accepted
                    continue
                with pytest.raises(ConnectionFailed) as raised:
                    await backend.send(outgoing())
                assert raised.value.temporary
                body_sent = bool(offer) or left >= sum(map(len, answers[:3]))
                assert raised.value.uncertain is body_sent, left


@pytest.mark.parametrize("offer", [CHUNKING, PIPELINING, NOTHING], ids=["chunking", "pipelining", "nothing"])
async def test_a_connection_cut_at_any_byte_is_never_a_delivery(offer: Sequence[str]) -> None:
    """Close the connection after each number of bytes that the server has read."""
    content = b"".join(outgoing().content)
    envelope = b"MAIL FROM:<from@example.com>\r\nRCPT TO:<to@example.com>\r\n"
    if "SIZE" in " ".join(offer):
        envelope = envelope.replace(b">\r\n", b"> SIZE=%d\r\n" % len(content), 1)
    chunk = b"BDAT %d LAST\r\n" % len(content)
    script = envelope + (chunk + content if offer is CHUNKING else b"DATA\r\n" + content + b".\r\n")
    begin_of_content = len(envelope) + (len(chunk) if offer is CHUNKING else len(b"DATA\r\n"))
    cut = 0

    async def converse(peer: Peer) -> None:
        await greet(peer, *offer)
        read = b""
        answered = 0
        while len(read) < cut:
            read += await peer.exactly(1)
            assert script.startswith(read)
            lines = min(read, script[:begin_of_content], key=len).count(b"\r\n") - (offer is CHUNKING)
            while answered < min(lines, 3):
                await peer.say(b"354 go" if answered == 2 else b"250 ok")
                answered += 1

    async with raw_server(converse) as port:
        for cut in range(1, len(script), 5):
            async with backend_for(port) as backend:
                with pytest.raises(ConnectionFailed) as raised:
                    await backend.send(outgoing())
            assert raised.value.temporary
            if cut != begin_of_content:  # where it depends on which end is faster
                assert raised.value.uncertain is (offer is CHUNKING or cut > begin_of_content), cut


async def test_an_unsolicited_reply_closes_the_connection() -> None:
    with SmtpServer() as server:
        server.fault("body", "250 taken\r\n250 and again", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            assert (await backend.send(outgoing())).response == "250 taken"
            await server.until(lambda: server.open_connections == 0)
            await backend.send(outgoing(number=2))
    assert server.connections == 2


@OFFERS
@pytest.mark.parametrize(("verb", "reply"), [("MAIL", "354 what"), ("RCPT", "354 what"), ("body", "354 what")])
async def test_an_unexpected_reply_closes_the_connection(offer: Sequence[str], verb: str, reply: str) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.fault(verb, reply, nth=1)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(ConnectionFailed, match="unexpected reply: 354 what") as raised:
                await backend.send(outgoing())
            assert raised.value.uncertain is (verb == "body" or {"PIPELINING", "CHUNKING"} <= set(offer))
            await backend.send(outgoing(number=2))
    assert server.connections == 2


@pytest.mark.parametrize("offer", [PIPELINING, NOTHING], ids=["pipelining", "nothing"])
async def test_without_354_no_content_is_sent(offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        server.fault("DATA", "250 what", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(ConnectionFailed) as raised:
                await backend.send(outgoing())
    assert not raised.value.uncertain
    assert server.verbs[-1] == "DATA"


async def test_a_connection_lost_after_all_recipients_were_refused_is_a_refusal() -> None:
    with SmtpServer(capabilities=PIPELINING) as server:
        server.refuse("gone@example.com", 550)
        server.fault("DATA", "354 go ahead", nth=1)
        server.fault(".", "drop", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(RecipientsRefused):
                await backend.send(outgoing(to=["gone@example.com"]))
            await backend.send(outgoing())
    assert server.connections == 2


@pytest.mark.parametrize(("verb", "error"), [("MAIL", MessageRefused), ("RCPT", RecipientsRefused)])
async def test_a_refusal_in_one_flight_is_certain_even_if_the_connection_is_lost(
    verb: str, error: type[DeliveryError]
) -> None:
    with SmtpServer() as server:
        server.fault(verb, 550, nth=1)
        server.fault("BDAT", "drop", nth=1)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(error) as raised:
                await backend.send(outgoing())
            assert (raised.value.code, raised.value.uncertain) == (550, False)
            await backend.send(outgoing())


@pytest.mark.parametrize("end", [b"", b"421 4.7.0 bye\r\n"], ids=["at once", "with 421"])
@pytest.mark.parametrize(("verb", "error"), [(b"MAIL", MessageRefused), (b"RCPT", RecipientsRefused)])
@pytest.mark.parametrize("size", [1000, 300_000])
@OFFERS
async def test_a_refusal_before_the_server_closes_is_a_refusal(
    offer: Sequence[str], size: int, verb: bytes, error: type[DeliveryError], end: bytes
) -> None:
    connections = 0

    async def converse(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await greet(peer, *offer)
        while not (await peer.line()).startswith(verb):
            await peer.say(b"250 ok")
        peer.writer.write(b"550 5.7.1 go away\r\n" + end)
        peer.writer.write_eof()
        await peer.reader.read()

    async with raw_server(converse) as port, backend_for(port) as backend:
        with pytest.raises(error) as raised:
            await backend.send(outgoing(large_body(size)))
    assert (raised.value.code, raised.value.temporary, raised.value.uncertain) == (550, False, False)
    assert connections == 1


@pytest.mark.parametrize("end", ["hangs up", "stops reading"])
@pytest.mark.parametrize("refused", [1, 2])
async def test_a_refusal_that_arrives_while_a_chunk_is_blocked_is_a_refusal(refused: int, end: str) -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, *CHUNKING)
        for answer in (b"250 sender", b"250 recipient", *[b"250 chunk"] * (refused - 1), b"552 5.3.4 too large"):
            command = await peer.line()
            if answer == b"250 chunk":
                await peer.exactly(int(command.split()[1]))
            await peer.say(answer)
        if end == "hangs up":
            peer.writer.write_eof()
        await peer.stay()

    async with raw_server(converse, limit=2**13) as port:
        settings = EmailSettings(host="127.0.0.1", port=port, timeout=2.0)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**13)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            connection = await (await Handshake.create(settings, sock)).run()
            with pytest.raises(MessageRefused) as raised:
                await run_transaction(connection, outgoing(large_body(20 * MEGABYTE)), TransactionOptions(timeout=2.0))
    assert (raised.value.code, raised.value.temporary, raised.value.uncertain) == (552, False, False)
    assert not connection.usable


@pytest.mark.parametrize("nth", [1, 2, 26])
async def test_421_to_a_chunk_is_temporary_and_certain(nth: int) -> None:
    with SmtpServer() as server:
        server.fault("BDAT", 421, nth=nth)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(ConnectionFailed, match="421") as raised:
                await backend.send(outgoing(large_body(26 * MEGABYTE - len(HEAD))))
    assert (raised.value.temporary, raised.value.uncertain) == (True, False)


async def test_bytes_behind_the_reply_to_ehlo_are_no_reply() -> None:
    async def converse(peer: Peer) -> None:
        await peer.say(b"220 raw.example ESMTP")
        await peer.line()
        await peer.say(b"250-raw.example", b"250-PIPELINING", b"250 CHUNKING", b"250 and this nobody asked for")
        await peer.reader.read()

    async with raw_server(converse) as port, backend_for(port) as backend:
        with pytest.raises(ConnectionFailed, match="unsolicited reply"):
            await backend.send(outgoing())


async def test_an_early_refusal_ends_the_content() -> None:
    """Refuse while the content is still being written, and stop reading."""

    async def converse(peer: Peer) -> None:
        await greet(peer)
        for answer in (b"250", b"250", b"354 go"):
            await peer.line()
            await peer.say(answer)
        await peer.exactly(1000)
        await peer.say(b"552 5.3.4 too large")
        await peer.stay()

    async with raw_server(converse) as port, backend_for(port) as backend, asyncio.timeout(PATIENCE):
        with pytest.raises(MessageRefused) as raised:
            await backend.send(outgoing(large_body(25 * MEGABYTE)))
        assert (raised.value.code, raised.value.uncertain) == (552, False)
        assert backend.stats is not None
        assert backend.stats.open == 0


async def test_a_refused_chunk_ends_the_message_and_not_the_connection() -> None:
    with SmtpServer() as server:
        server.fault("BDAT", 452, nth=2)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            with pytest.raises(MessageRefused) as raised:
                await backend.send(outgoing(large_body(10 * MEGABYTE)))
            await backend.send(outgoing(number=2))
    assert raised.value.code == 452
    assert server.verbs.count("BDAT") < 6
    assert server.connections == 1
    assert [message.content for message in server.messages] == [b"".join(outgoing().content)]


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("offer", [CHUNKING, PIPELINING], ids=["chunking", "pipelining"])
async def test_a_server_that_stops_reading_times_out_and_nothing_was_sent(offer: Sequence[str], tls: bool) -> None:
    """Stop reading before the end of the message has left this process, so that the failure is certain."""

    async def converse(peer: Peer) -> None:
        await greet(peer, *offer)
        await peer.until(b"\r\n" if offer is CHUNKING else b"DATA\r\n")
        await peer.say(b"250", b"250", *([] if offer is CHUNKING else [b"354 go"]))
        await peer.stay()

    settings: dict[str, object] = {"use_ssl": True, "tls_ca_file": str(ca_file())} if tls else {}
    settings |= {"timeout": 1.0, "data_timeout": 1.0}
    async with (
        raw_server(converse, tls=tls) as port,
        backend_for(port, **settings) as backend,
        asyncio.timeout(PATIENCE),
    ):
        with pytest.raises(DeliveryTimeout) as raised:
            await backend.send(outgoing(large_body(25 * MEGABYTE)))
    assert raised.value.temporary
    assert not raised.value.uncertain


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_a_server_that_closes_while_content_is_blocked_is_a_connection_failure(tls: bool) -> None:
    async def converse(peer: Peer) -> None:
        await greet(peer, *CHUNKING)
        assert [(await peer.line())[:4] for _ in range(2)] == [b"MAIL", b"RCPT"]
        await peer.say(b"250", b"250")
        await asyncio.sleep(0.5)

    settings: dict[str, object] = {"use_ssl": True, "tls_ca_file": str(ca_file())} if tls else {}
    async with (
        raw_server(converse, tls=tls) as port,
        backend_for(port, **settings) as backend,
        asyncio.timeout(PATIENCE),
    ):
        with pytest.raises(ConnectionFailed) as raised:
            await backend.send(outgoing(large_body(25 * MEGABYTE)))
    assert raised.value.temporary
    assert not raised.value.uncertain


async def test_a_silent_connection_that_was_lost_is_replaced() -> None:
    """Send the envelope before the content after a pause, so that a lost connection is certain."""
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(outgoing())
            await asyncio.sleep(1.1)
            server.fault("MAIL", "drop", nth=1)
            await backend.send(outgoing(number=2))
            assert backend.stats is not None
            assert backend.stats.reconnects == 1
    assert len(server.messages) == 2
    assert server.connections == 2


async def test_a_connection_lost_before_the_first_byte_is_no_uncertain_failure() -> None:
    """Lose the connection before a flight that would hold the whole message."""
    with SmtpServer() as server:
        connection = await Handshake(EmailSettings(**server.settings()), None).run()
        connection.abort()
        with pytest.raises(StaleConnection) as stale:
            await run_transaction(connection, outgoing(), TransactionOptions())
    assert not stale.value.error.uncertain
    assert server.messages == []


@OFFERS
async def test_421_to_mail_on_a_reused_connection_is_no_refusal(offer: Sequence[str]) -> None:
    with SmtpServer(capabilities=offer) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(outgoing())
            server.fault("MAIL", 421, nth=1)
            assert (await backend.send(outgoing(number=2))).accepted
    assert len(server.messages) == 2


async def test_a_message_is_repeated_only_once() -> None:
    with SmtpServer() as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await backend.send(outgoing())
            server.fault("MAIL", 421)
            with pytest.raises(DeliveryError) as raised:
                await backend.send(outgoing(number=2))
    assert (raised.value.code, raised.value.temporary) == (421, True)
    assert server.verbs.count("MAIL") == 3
