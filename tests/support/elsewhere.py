"""Another site, which notes what it is asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["elsewhere"]


@asynccontextmanager
async def elsewhere(body: bytes = b"") -> AsyncIterator[tuple[str, list[bytes]]]:
    """Another site: its address, and what it was asked for; every page of it is ``body``."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(b"")
        asked[-1] = await reader.read(1000)
        length = str(len(body)).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: " + length
        writer.write(head + b"\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", asked
