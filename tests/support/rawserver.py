"""A server that is nothing but a coroutine of the test: for what a real SMTP server would never do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from support.certificates import server_context
from support.patience import PATIENCE

__all__ = ["Peer", "greet", "raw_server"]


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, over: asyncio.Event) -> None:
        self.reader = reader
        self.writer = writer
        self._over = over

    async def line(self) -> bytes:
        """The next line that the client wrote, without its end."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE))[:-2]

    async def exactly(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        return await asyncio.wait_for(self.reader.readexactly(count), PATIENCE)

    async def until(self, end: bytes) -> bytes:
        """Everything up to and including ``end``."""
        return await asyncio.wait_for(self.reader.readuntil(end), PATIENCE)

    async def say(self, *replies: bytes) -> None:
        """Write replies, one line each."""
        self.writer.write(b"".join(reply + b"\r\n" for reply in replies))
        await self.writer.drain()

    async def stay(self) -> None:
        """Keep the connection, and neither read nor write, until the test is over."""
        await self._over.wait()

    async def nothing_comes(self, seconds: float = 0.05) -> None:
        """Fail when the client writes anything within ``seconds``."""
        try:
            early = await asyncio.wait_for(self.reader.read(1), seconds)
        except TimeoutError:
            return
        raise AssertionError(f"the client went on without an answer: {early!r}...")


async def greet(peer: Peer, *capabilities: str) -> None:
    """Greeting and EHLO."""
    await peer.say(b"220 raw.example ESMTP")
    assert (await peer.line()).startswith(b"EHLO ")
    names = ["raw.example", *capabilities]
    await peer.say(*[f"250-{name}".encode() for name in names[:-1]], f"250 {names[-1]}".encode())


@contextlib.asynccontextmanager
async def raw_server(
    converse: Callable[[Peer], Awaitable[None]], *, tls: bool = False, limit: int = 2**20
) -> AsyncIterator[int]:
    """Serve every connection with ``converse``; gives the port. What ``converse`` raises is raised at the end.

    ``tls``: from the first byte, with a certificate that ``certificates.ca_file()`` vouches for.
    ``limit``: it reads at most twice as many bytes ahead of ``converse``.
    """
    failures: list[BaseException] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await converse(Peer(reader, writer, over))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        except Exception as error:  # noqa: BLE001 - shown at the end
            failures.append(error)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=limit, ssl=server_context() if tls else None)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()
        await server.wait_closed()
        if failures:
            raise failures[0]
