"""A database that stops answering at a statement: PostgreSQL behind a proxy, SQLite by an event of its engine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sqlalchemy import event, make_url
from sqlalchemy.util.concurrency import await_only

from openviper import conf, db

__all__ = ["Silence", "silent_at"]


class Silence:
    """Begins when told; ``reached`` is set once the statement has come."""

    def __init__(self) -> None:
        self.begun = False
        self.reached = asyncio.Event()

    def begin(self) -> None:
        """Answer the statement no more from now on."""
        self.begun = True


@contextlib.asynccontextmanager
async def silent_at(statement: str, *, hang_up: bool = False) -> AsyncIterator["Silence"]:
    """Let the database of ``DATABASE_URL`` never answer ``statement`` (COMMIT or ROLLBACK) after ``begin``.

    ``hang_up``: it executes the statement, and closes the connection; PostgreSQL only.
    """
    url = make_url(conf.settings.DATABASE_URL)
    if url.get_backend_name() == "sqlite":
        async with _silent_sqlite(statement.lower()) as silence:
            yield silence
        return
    async with _Proxy(url.port or 5432, statement.encode(), hang_up=hang_up) as proxy:
        with conf.override(DATABASE_URL=url.set(port=proxy.port).render_as_string(hide_password=False)):
            yield proxy.silence
            proxy.stop()
            await db.dispose()


@contextlib.asynccontextmanager
async def _silent_sqlite(name: str) -> AsyncIterator["Silence"]:
    engine = (await db.engine()).sync_engine
    silence = Silence()

    def hang(_: object) -> None:
        if silence.begun:
            silence.reached.set()
            await_only(asyncio.Event().wait())

    event.listen(engine, name, hang)
    try:
        yield silence
    finally:
        event.remove(engine, name, hang)


class _Proxy:
    def __init__(self, server: int, statement: bytes, *, hang_up: bool) -> None:
        self._server = server
        self._hang_up = hang_up
        self._statement = statement
        self._tasks: set[asyncio.Task[None]] = set()
        self.silence = Silence()
        self.port = 0

    async def __aenter__(self) -> "_Proxy":
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """Close all connections."""
        self._listener.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        above, below = await asyncio.open_connection("127.0.0.1", self._server)
        silent = asyncio.Event()
        try:
            await asyncio.gather(self._forward(reader, below, silent), self._answer(above, writer, silent))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client or the test has ended it
        finally:
            writer.transport.abort()
            below.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if self.silence.begun and self._statement in data:
                silent.set()
                self.silence.reached.set()
            writer.write(data)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if not silent.is_set():
                writer.write(data)
            elif self._hang_up:
                raise ConnectionResetError
