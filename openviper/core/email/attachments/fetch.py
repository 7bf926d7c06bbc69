"""Download an attachment from an untrusted URL.

Every hop is resolved once and checked, and the connection goes to an address that was checked, so that a name that
changes its answer in between gains nothing. The transport is used without httpx's client: no proxies of the
environment, no cookies, no netrc, no redirects of its own, and no log line with the URL.

Importing this module takes a tenth of a second; import it in a thread.
"""

import asyncio
import contextlib
import functools
import importlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import certifi
import httpx

from openviper.core.email.attachments.bytelimit import ByteLimit
from openviper.core.email.attachments.decoding import decoder_for
from openviper.core.email.attachments.mediatypes import declared_type
from openviper.core.email.attachments.netguard import HostRefused, Resolver, public_addresses, resolve
from openviper.core.email.attachments.target import UrlTarget, parse_target, redirected
from openviper.core.email.attachments.temporary import ContentWriter, FileContent
from openviper.core.email.errors import AttachmentRefused
from openviper.tcp import first_success, interleaved
from openviper.text import shown, without_quotes

if TYPE_CHECKING:
    from httpcore import AsyncNetworkStream

__all__ = ["Fetched", "fetch"]

# These would be imported at the first connection, which is made on the event loop.
for _module in ("encodings.idna", "httpcore", "sniffio", "anyio._backends._asyncio", "anyio.streams.tls"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_module)

_Trace = Callable[[str, Mapping[str, Any]], Awaitable[None]]
_Streams = list["AsyncNetworkStream"]

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the server sent; ``mimetype`` is its Content-Type without parameters, None when absent or unusable."""

    content: bytes | FileContent
    mimetype: str | None


async def fetch(
    url: str,
    *,
    limit: ByteLimit,
    allowed_hosts: Collection[str] = (),
    timeout: float = 20.0,
    resolver: Resolver = resolve,
    ssl_context: ssl.SSLContext | None = None,
) -> Fetched:
    """Download ``url``; ``limit`` bounds its size and holds the file name that errors show.

    ``timeout`` in seconds covers everything: resolving, connecting, redirects (at most 3) and the body.
    ``ssl_context`` None means the system's trust store, or certifi's where the system has none. A user name and
    password in the URL are sent as Basic authentication to that origin only. Any port is accepted.

    Raises:
        AttachmentRefused: not allowed, not reached in time, not answered with 200, cut short, or too large. Its text
            has neither credentials nor query.
    """
    first = parse_target(url, limit.filename)
    try:
        async with asyncio.timeout(timeout):
            return await _follow(first, limit, allowed_hosts, resolver, ssl_context)
    except TimeoutError:
        raise AttachmentRefused(limit.filename, f"was not completely received within {timeout:g} seconds") from None
    except httpx.ProtocolError as error:
        # Not chained: its text quotes what the server sent, which may be the file.
        reason = f"could not be fetched: {type(error).__name__} ({without_quotes(str(error))[:200]})"
        raise AttachmentRefused(limit.filename, reason) from None
    except httpx.HTTPError as error:
        raise AttachmentRefused(limit.filename, f"could not be fetched: {_describe(error)}") from error


async def _follow(
    target: UrlTarget,
    limit: ByteLimit,
    allowed_hosts: Collection[str],
    resolver: Resolver,
    ssl_context: ssl.SSLContext | None,
) -> Fetched:
    context = ssl_context if ssl_context is not None else await asyncio.to_thread(_default_context)
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            addresses = await public_addresses(target.host, target.port, allowed_hosts=allowed_hosts, resolver=resolver)
        except HostRefused as error:
            raise AttachmentRefused(limit.filename, f"the host {shown(target.host)} {error}") from error
        async with _opened(target, addresses, context) as response:
            if response.status_code not in _REDIRECTS:
                return await _receive(response, target.host, limit)
            target = redirected(target, response.status_code, response.headers.get("Location"), limit.filename)
    raise AttachmentRefused(limit.filename, f"redirected more than {_MAX_REDIRECTS} times")


@functools.cache
def _default_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        context.load_verify_locations(certifi.where())
    return context


@contextlib.asynccontextmanager
async def _opened(
    target: UrlTarget, addresses: Sequence[str], context: ssl.SSLContext
) -> AsyncIterator[httpx.Response]:
    """Return the response of the first address that accepts a connection."""
    streams: _Streams = []
    try:
        async with httpx.AsyncHTTPTransport(verify=context, trust_env=False) as transport:
            response = await _first_response(transport, target, addresses, streams)
            try:
                yield response
            finally:
                await response.aclose()
    finally:
        # The transport forgets a socket when it is cancelled during the TLS handshake.
        for stream in streams:
            await stream.aclose()


async def _first_response(
    transport: httpx.AsyncHTTPTransport, target: UrlTarget, addresses: Sequence[str], streams: _Streams
) -> httpx.Response:
    """Send the request to the first of ``addresses`` that accepts a connection."""
    if len(addresses) == 1:
        return await transport.handle_async_request(_request(target, addresses[0], partial(_record_stream, streams)))
    attempts = [
        _Attempt(transport, target, address, streams).connect
        for address in interleaved(addresses, family=lambda address: ":" in address)
    ]
    attempt = await first_success(attempts, failures=httpx.TransportError, discard=_Attempt.cancel)
    return await attempt.proceed()


async def _record_stream(streams: _Streams, event: str, info: Mapping[str, Any]) -> None:
    if event == "connection.connect_tcp.complete":
        streams.append(info["return_value"])


class _Attempt:
    """A request to ``address`` that stops between the connection, which may come too late, and its first byte.

    Its stream is added to ``streams``, to be closed there.
    """

    def __init__(self, transport: httpx.AsyncHTTPTransport, target: UrlTarget, address: str, streams: _Streams) -> None:
        self._transport = transport
        self._request = _request(target, address, self._trace)
        self._streams = streams
        self._connected = asyncio.Event()
        self._may_proceed = asyncio.Event()
        self._response: asyncio.Task[httpx.Response] | None = None

    async def connect(self) -> Self:
        """Connect; ``proceed`` or ``cancel`` must follow.

        Raises:
            httpx.TransportError: there is no connection.
        """
        self._response = asyncio.create_task(self._transport.handle_async_request(self._request))
        connected = asyncio.create_task(self._connected.wait())
        try:
            await asyncio.wait((self._response, connected), return_when=asyncio.FIRST_COMPLETED)
            if not self._connected.is_set():
                self._response.result()
        except BaseException:
            self.cancel()
            await asyncio.wait((self._response,))
            raise
        finally:
            connected.cancel()
        return self

    async def proceed(self) -> httpx.Response:
        """Send the request and return the response, whose content is not read yet."""
        assert self._response is not None
        self._may_proceed.set()
        return await self._response

    def cancel(self) -> None:
        """Give the request up."""
        assert self._response is not None
        self._response.cancel()
        self._response.add_done_callback(_retrieve_error)

    async def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        await _record_stream(self._streams, event, info)
        if event == "connection.connect_tcp.complete":
            self._connected.set()
            await self._may_proceed.wait()


def _retrieve_error(task: asyncio.Task[httpx.Response]) -> None:
    """Read the error of a request that nobody waits for any more, which would else be logged."""
    if not task.cancelled():
        task.exception()


def _request(target: UrlTarget, address: str, trace: _Trace) -> httpx.Request:
    headers = {
        "Host": target.host_header,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": "openviper-email",
    }
    if target.authorization:
        headers["Authorization"] = target.authorization
    url = target.url.copy_with(host=address, username="", password="", fragment=None)
    extensions = {
        "timeout": httpx.Timeout(None).as_dict(),
        "sni_hostname": target.host,  # the certificate is checked against it too, not against the address
        "trace": trace,
    }
    return httpx.Request("GET", url, headers=headers, extensions=extensions)


async def _receive(response: httpx.Response, host: str, limit: ByteLimit) -> Fetched:
    if response.status_code != 200:
        raise AttachmentRefused(limit.filename, f"{host} answered {response.status_code} instead of 200")
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    length = response.headers.get("Content-Length", "")
    if encoding in ("", "identity") and length.isdecimal():
        limit.announce(int(length))
    decoder = decoder_for(encoding, limit)
    writer = ContentWriter(limit.filename)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for raw in response.stream:
        for piece in decoder.decode(raw):
            limit.spend(len(piece))
            if writer.add(piece):
                await asyncio.to_thread(writer.flush)
            await asyncio.sleep(0)
    decoder.finish()
    content = await asyncio.to_thread(writer.finish) if writer.in_file else writer.finish()
    return Fetched(content, declared_type(response.headers.get("Content-Type", "")))


def _describe(error: httpx.HTTPError) -> str:
    text = str(error)[:200]
    return f"{type(error).__name__} ({text})" if text else type(error).__name__
