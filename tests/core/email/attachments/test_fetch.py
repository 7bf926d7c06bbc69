"""Downloads: what is fetched, how it is asked for, and where they stop."""

import asyncio
import contextlib
import gzip
import logging
import os
import ssl
import subprocess
import sys
import traceback
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.certificates import ca_file, server_context
from support.httpd import HttpServer, head
from support.patience import PATIENCE
from support.silence import silent

from openviper.core.email.attachments import FileContent
from openviper.core.email.attachments.bytelimit import ByteLimit, TotalLimit
from openviper.core.email.attachments.fetch import Fetched, fetch
from openviper.core.email.errors import AttachmentRefused

MEGABYTE = 1024 * 1024


class Meter(ByteLimit):
    """Counts the bytes that reach us."""

    def __init__(self, max_bytes: int = MEGABYTE) -> None:
        super().__init__("file.bin", max_bytes, TotalLimit(None))
        self.read = 0

    def spend(self, count: int) -> None:
        self.read += count
        super().spend(count)


async def get(url: str, *, limit: ByteLimit | None = None, timeout: float = PATIENCE, **options: object) -> Fetched:
    options.setdefault("allowed_hosts", ["localhost"])
    return await fetch(url, limit=limit or Meter(), timeout=timeout, **options)  # type: ignore[arg-type]


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with HttpServer() as running:
        yield running


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file())


async def loopback(host: str, port: int) -> list[str]:
    """A resolver for which every name is this machine."""
    return ["127.0.0.1"]


@pytest.mark.parametrize("size", [0, 1, 65536, MEGABYTE])
async def test_the_body_arrives_unchanged(server: HttpServer, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"\r" * (size % 256)
    server.answer("/a", body, headers={"Content-Type": "Image/PNG; q=1"})
    fetched = await get(server.url("/a"))
    assert fetched == Fetched(body, "image/png")


async def test_a_large_body_does_not_hold_the_loop(server: HttpServer) -> None:
    body = b"0123456789abcdef" * (MEGABYTE // 2)
    server.answer("/a", body)
    content = (await get(server.url("/a"), limit=Meter(len(body)))).content
    assert isinstance(content, FileContent)
    assert content.read() == body


@pytest.mark.parametrize("value", ["", "png", "a/b/c", "multipart/mixed; boundary=x", "message/rfc822", "é/x", "a/b c"])
async def test_a_content_type_that_cannot_be_used_is_none(server: HttpServer, value: str) -> None:
    server.answer("/a", b"x", headers={"Content-Type": value})
    assert (await get(server.url("/a"))).mimetype is None


async def test_the_request_carries_nothing_of_this_machine(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """No proxy, no netrc, no cookies from one request to the next."""
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("default login netrcuser password netrcpassword\n")
    monkeypatch.setenv("NETRC", netrc)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answer("/a?b=c", b"x")
    server.answer("/a", b"x", headers={"Set-Cookie": "session=1"})
    for _ in range(2):
        await get(server.url("/a?b=c#part"))
    first, second = server.requests
    assert first == second
    assert first.target == "/a?b=c"
    assert first.headers == {
        "host": f"localhost:{server.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
        "user-agent": "openviper-email",
    }


async def test_credentials_of_the_url_are_sent_and_never_logged(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer("/a", b"x")
    await get(server.url("/a?token=hidden", user="us%20er:s%3Acret"))
    assert server.requests[0].headers["authorization"] == "Basic dXMgZXI6czpjcmV0"
    for secret in ("cret", "hidden", "dXMgZXI6czpjcmV0"):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    "rest", ["localhost:{port}/gone?token=s3cret", "10.0.0.1/?s3cret", "localhost:x/s3cret", "[s3cret", "0x1/s3cret"]
)
async def test_no_error_shows_credentials_or_query(server: HttpServer, rest: str) -> None:
    with pytest.raises(AttachmentRefused) as caught:
        await get("http://me:s3cret@" + rest.format(port=server.port))
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in f"{error} {error!r}"
        error = error.__cause__


async def test_tls_is_checked_against_the_name_and_not_the_address(trusting: ssl.SSLContext) -> None:
    """The certificate names elsewhere.example, and the connection goes to 127.0.0.1."""
    async with HttpServer(server_context("wrong-host")) as server:
        server.answer("/a", b"secure")
        url = server.url("/a", host="elsewhere.example")
        options: dict[str, Any] = {
            "allowed_hosts": ["elsewhere.example"],
            "resolver": loopback,
            "ssl_context": trusting,
        }
        assert (await get(url, **options)).content == b"secure"
        assert server.server_names == ["elsewhere.example"]
        assert server.requests[0].headers["host"] == f"elsewhere.example:{server.port}"


async def test_tls_to_an_address_is_checked_against_the_address(trusting: ssl.SSLContext) -> None:
    async with HttpServer(server_context()) as server:
        server.answer("/a", b"secure")
        url = server.url("/a", host="127.0.0.1")
        assert (await get(url, allowed_hosts=["127.0.0.1"], ssl_context=trusting)).content == b"secure"


@pytest.mark.parametrize("kind", ["untrusted", "wrong-host", "expired"])
async def test_a_bad_certificate_is_refused(kind: str, trusting: ssl.SSLContext) -> None:
    async with HttpServer(server_context(kind)) as server:
        server.answer("/a", b"x")
        with pytest.raises(AttachmentRefused, match="CERTIFICATE_VERIFY_FAILED"):
            await get(server.url("/a"), ssl_context=trusting)
        assert server.requests == []


async def test_without_a_context_the_usual_authorities_are_trusted() -> None:
    async with HttpServer(server_context()) as server:
        with pytest.raises(AttachmentRefused, match="CERTIFICATE_VERIFY_FAILED"):
            await get(server.url("/a"))


def test_certifi_stands_in_where_the_system_trusts_nobody() -> None:
    code = "from openviper.core.email.attachments import fetch; print(fetch._default_context().cert_store_stats())"
    nothing = {"SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent"}
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **nothing}, capture_output=True, check=True)
    assert b"'x509_ca': 0" not in run.stdout


async def test_the_next_address_is_tried_when_one_refuses(server: HttpServer) -> None:
    async def two(host: str, port: int) -> list[str]:
        return ["127.0.0.9", "::1", "127.0.0.1"]

    server.answer("/a", b"x")
    assert (await get(server.url("/a"), resolver=two)).content == b"x"


async def test_silent_addresses_are_passed_over(server: HttpServer) -> None:
    quiet = ["::1", *(f"127.0.1.{number}" for number in range(1, 12))]

    async def resolver(host: str, port: int) -> list[str]:
        return [*quiet, "127.0.0.1"]

    server.answer("/a", b"x")
    with contextlib.ExitStack() as stack:
        for host in quiet:
            stack.enter_context(silent(host, server.port))
        # They would take longer one after another.
        assert (await get(server.url("/a"), resolver=resolver, timeout=25.0)).content == b"x"
    assert (server.connections, len(server.requests)) == (1, 1)


async def test_only_one_of_several_addresses_is_sent_the_request(server: HttpServer) -> None:
    """A server that takes long to answer has accepted the connection; no other address is asked meanwhile."""

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "127.0.0.1", "127.0.0.1"]

    async def respond(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.0)  # longer than the pause between two addresses
        writer.write(head(content_length=1) + b"x")

    server.respond("/a", respond)
    assert (await get(server.url("/a"), resolver=resolver)).content == b"x"
    assert (server.connections, len(server.requests)) == (1, 1)


async def test_the_deadline_covers_silent_addresses_and_leaves_nothing(server: HttpServer) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.8", "127.0.0.9"]

    before = asyncio.all_tasks()
    with silent("127.0.0.8", server.port), silent("127.0.0.9", server.port):
        with pytest.raises(AttachmentRefused, match="within 1 seconds"):
            await get(server.url("/a"), resolver=resolver, timeout=1.0)
        assert asyncio.all_tasks() == before


async def test_a_host_that_nobody_answers_for_is_an_error(server: HttpServer) -> None:
    async def closed(host: str, port: int) -> list[str]:
        return ["127.0.0.8", "127.0.0.9"]

    with pytest.raises(AttachmentRefused, match="could not be fetched"):
        await get(server.url("/a"), resolver=closed)


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 403, 404, 410, 429, 500, 503])
async def test_only_200_is_a_file(server: HttpServer, status: int) -> None:
    server.answer("/a", b"" if status in (204, 304) else b"not the file", status=status)
    with pytest.raises(AttachmentRefused, match=f"localhost answered {status}"):
        await get(server.url("/a"))


# Limits


async def test_an_announced_size_above_the_limit_is_not_read(server: HttpServer) -> None:
    server.answer("/a", b"x" * 5001)
    meter = Meter(5000)
    with pytest.raises(AttachmentRefused, match="5001 bytes"):
        await get(server.url("/a"), limit=meter)
    assert meter.read == 0


async def test_reading_stops_one_chunk_after_the_limit(server: HttpServer) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(head())
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()

    server.respond("/a", endless)
    meter = Meter(300_000)
    with pytest.raises(AttachmentRefused, match="too large"):
        await get(server.url("/a"), limit=meter)
    assert 300_000 < meter.read <= 300_000 + 65_536


async def test_exactly_the_limit_is_taken_without_an_announced_size(server: HttpServer) -> None:
    async def unannounced(writer: asyncio.StreamWriter) -> None:
        writer.write(head() + b"x" * 1000)

    server.respond("/a", unannounced)
    assert len((await get(server.url("/a"), limit=Meter(1000))).content) == 1000
    with pytest.raises(AttachmentRefused):
        await get(server.url("/a"), limit=Meter(999))


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("x-gzip", 31), ("deflate", 15), (" GZIP ", 31)])
async def test_a_compressed_body_is_decoded_though_not_asked_for(server: HttpServer, encoding: str, wbits: int) -> None:
    body = bytes(range(256)) * 2000
    packer = zlib.compressobj(wbits=wbits)
    server.answer("/a", packer.compress(body) + packer.flush(), headers={"Content-Encoding": encoding})
    assert (await get(server.url("/a"))).content == body


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_stops_one_chunk_after_the_limit(server: HttpServer, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(64)) + packer.flush()
    server.answer("/a", bomb, headers={"Content-Encoding": encoding})
    meter = Meter(200_000)
    with pytest.raises(AttachmentRefused, match="too large"):
        await get(server.url("/a"), limit=meter)
    assert 200_000 < meter.read <= 200_000 + 65_536


async def test_compressed_nothing_without_end_is_stopped(server: HttpServer) -> None:
    """Empty stored blocks decode to no bytes at all, for ever."""

    async def empty_blocks(writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_encoding="deflate") + b"\x78\x9c")
        while True:
            writer.write(b"\x00\x00\x00\xff\xff" * 10_000)
            await writer.drain()

    server.respond("/a", empty_blocks)
    with pytest.raises(AttachmentRefused, match="above its limit"):
        await get(server.url("/a"))


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"x" * 999)[:-1], b"", b"plain", gzip.compress(b"a") + b"more", gzip.compress(b"a") * 2],
    ids=["cut", "empty", "plain", "trailing", "twice"],
)
async def test_a_broken_compressed_body_is_refused(server: HttpServer, body: bytes) -> None:
    server.answer("/a", body, headers={"Content-Encoding": "gzip"})
    with pytest.raises(AttachmentRefused, match="compressed"):
        await get(server.url("/a"))


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "unknown"])
async def test_other_encodings_are_refused(server: HttpServer, encoding: str) -> None:
    server.answer("/a", b"x", headers={"Content-Encoding": encoding})
    with pytest.raises(AttachmentRefused, match="content encoding"):
        await get(server.url("/a"))


# Broken and slow servers


@pytest.mark.parametrize(
    "answer",
    [
        b"Customer Anna M., 42 Secret Street\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nAnna M., Secret Street\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSecret 'Street'\r\nAnna\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: Secret\r\n\r\nAnna",
    ],
    ids=["no head", "header", "chunk", "length"],
)
async def test_what_a_broken_answer_holds_is_in_no_error(server: HttpServer, answer: bytes) -> None:
    """h11's own texts quote it."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    server.respond("/a", respond)
    with pytest.raises(AttachmentRefused, match="could not be fetched: RemoteProtocolError") as raised:
        await get(server.url("/a"))
    shown = "".join(traceback.format_exception(raised.value))
    assert "Secret" not in shown
    assert "Anna" not in shown


@pytest.mark.parametrize(
    "answer",
    [
        head(content_length=10) + b"short",
        head(transfer_encoding="chunked") + b"5\r\nshort\r\n",
        head(transfer_encoding="chunked") + b"zz\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
        b"\x00" * 100,
    ],
)
async def test_a_body_cut_short_or_no_http_is_an_error(server: HttpServer, answer: bytes) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    server.respond("/a", respond)
    with pytest.raises(AttachmentRefused, match="could not be fetched") as caught:
        await get(server.url("/a"))
    assert len(str(caught.value)) < 400


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10 * PATIENCE)


async def hang_in_the_body(writer: asyncio.StreamWriter) -> None:
    writer.write(head(content_length=100) + b"x")
    await asyncio.sleep(10 * PATIENCE)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(head())
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def continue_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("behaviour", [hang, hang_in_the_body, drip, continue_for_ever])
async def test_the_deadline_covers_the_whole_download(server: HttpServer, behaviour: object) -> None:
    server.respond("/a", behaviour)  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(AttachmentRefused, match=r"within 0\.3 seconds"):
            await get(server.url("/a"), timeout=0.3)


async def test_the_deadline_covers_resolving(server: HttpServer) -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(10 * PATIENCE)
        return []

    with pytest.raises(AttachmentRefused, match="within"):
        await get(server.url("/a"), timeout=0.3, resolver=slow)


async def test_a_handshake_that_never_ends_leaves_no_socket() -> None:
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        closed.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        with pytest.raises(AttachmentRefused, match="within"):
            await get(f"https://localhost:{listening.sockets[0].getsockname()[1]}/", timeout=0.3)
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


async def test_a_cancelled_download_closes_its_connection(server: HttpServer) -> None:
    gone = asyncio.Event()

    async def until_closed(writer: asyncio.StreamWriter) -> None:
        try:
            await drip(writer)
        except ConnectionError:
            gone.set()

    server.respond("/a", until_closed)
    task = asyncio.create_task(get(server.url("/a"), limit=Meter()))
    while not server.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(PATIENCE):
        await gone.wait()
