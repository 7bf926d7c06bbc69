"""An HTTP/1.1 server on loopback that answers as told, byte by byte where a test needs a broken answer."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["HttpServer", "Request", "head"]

Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Request:
    target: str
    headers: dict[str, str]


def head(status: int = 200, **headers: str | int) -> bytes:
    """Status line and headers; ``content_length=3`` becomes ``content-length: 3``."""
    lines = [f"HTTP/1.1 {status} Whatever"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass
class HttpServer:
    """``connections`` counts what was accepted; ``requests`` are those understood; ``server_names`` the SNI seen."""

    tls: ssl.SSLContext | None = None
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    _routes: dict[str, Respond] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        if self.tls is not None:
            self.tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.tls is not None:
            self.tls.sni_callback = None

    def url(self, path: str = "/", *, host: str = "localhost", user: str = "") -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{user}{'@' if user else ''}{host}:{self.port}{path}"

    def answer(
        self,
        path: str,
        body: bytes = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        delay: float = 0,
    ) -> None:
        """Answer ``path`` with a whole response after ``delay`` seconds."""

        async def respond(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(delay)
            writer.write(head(status, content_length=len(body), **(headers or {})) + body)

        self._routes[path] = respond

    def respond(self, path: str, respond: Respond) -> None:
        """Answer ``path`` by a coroutine function that writes all there is; the connection closes when it returns."""
        self._routes[path] = respond

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = raw.rstrip("\r\n").split("\r\n")
                pairs = (line.partition(": ") for line in lines)
                request = Request(first.split(" ")[1], {name.lower(): value for name, _, value in pairs})
                self.requests.append(request)
                respond = self._routes.get(request.target.partition("?")[0])
                if respond is None:
                    writer.write(head(404, content_length=0))
                else:
                    await respond(writer)
                await writer.drain()
            finally:
                writer.close()
