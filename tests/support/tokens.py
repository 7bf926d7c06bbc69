"""An OAuth 2 token endpoint on loopback that answers as told."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl

__all__ = ["TokenEndpoint"]


class TokenEndpoint:
    """``forms`` are those that were posted; each gets the next answer, the last one again and again.

    ``issue`` makes the answers instead. ``most_at_once``: requests that were answered at the same time.
    """

    def __init__(self, issue: Callable[[], Mapping[str, object]] | None = None) -> None:
        self.forms: list[dict[str, str]] = []
        self.most_at_once = 0
        self._issue = issue
        self._now = 0
        self._answers: deque[tuple[int, object]] = deque()

    def answer(self, **body: object) -> None:
        self.answer_with(200, body)

    def answer_with(self, status: int, body: object) -> None:
        self._answers.append((status, body))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/token"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        assert "application/x-www-form-urlencoded" in head
        length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:"))
        self.forms.append(dict(parse_qsl((await reader.readexactly(length)).decode())))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0.05)  # as a real one takes its time
        status, body = self._next_answer()
        content = json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status} Whatever\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n".encode()
        )
        writer.write(content)
        await writer.drain()
        self._now -= 1
        writer.close()

    def _next_answer(self) -> tuple[int, object]:
        if self._issue is not None:
            return 200, self._issue()
        return self._answers.popleft() if len(self._answers) > 1 else self._answers[0]
