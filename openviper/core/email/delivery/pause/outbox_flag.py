"""Keep the pause flag in the database outbox."""

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

from openviper.core.email.delivery.pause.store import StoredFlag
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue.outbox_engine import describe_outbox_failure, outbox_engine
from openviper.core.email.settings import database_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from openviper.db.outbox.flags import FlagRows

__all__ = ["OutboxPauseStore"]

_NAME = "paused"
_LIMIT = 2.0  # seconds for the database to answer

T = TypeVar("T")


class OutboxPauseStore:
    """Keeps the flag in the table ``email_meta``. Its times are those of the database's clock.

    An event loop of its own, which any thread may run, keeps the connection between the readings.
    """

    def __init__(self, outbox: str) -> None:
        self._outbox = outbox
        self._database = database_url() if outbox == "database" else None
        self._lock = threading.Lock()
        self._runner: asyncio.Runner | None = None
        self._rows: FlagRows | None = None

    @property
    def identity(self) -> object:
        """Return what two stores of the same flag have in common."""
        return "outbox", self._outbox, self._database

    @property
    def address(self) -> str:
        """Return where the flag is kept."""
        return "the database outbox"

    def open(self) -> None:
        """Make the engine; connects nothing.

        Raises:
            ImproperlyConfigured: the setting names no engine.
            MissingDependency: SQLAlchemy or the driver is not installed.
        """
        self._run(_nothing)

    def read(self) -> StoredFlag:
        """Return the flag and the database's time.

        Raises:
            QueueUnavailable: the database does not answer.
        """
        value, now = self._run(lambda rows: rows.read(_NAME))
        return StoredFlag(None if value is None else value.encode(), now)

    def write(self, data: bytes, *, expected: bytes | None) -> bool:
        """Replace the flag; False if it is not ``expected`` any more.

        Raises:
            QueueUnavailable: the database does not answer.
        """
        text = None if expected is None else expected.decode()
        return self._run(lambda rows: rows.write(_NAME, data.decode(), expected=text))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            runner, rows = self._runner, self._rows
            self._runner = self._rows = None
            if runner is not None:
                if rows is not None:
                    runner.run(rows.dispose())
                runner.close()

    def _run(self, work: "Callable[[FlagRows], Awaitable[T]]") -> T:
        async def run() -> T:
            if self._rows is None:
                from openviper.db.engines import copy_engine
                from openviper.db.outbox.flags import FlagRows

                # Its connections are of another event loop than the application's.
                self._rows = FlagRows(copy_engine(await outbox_engine(self._outbox), lock_seconds=_LIMIT))
            try:
                async with asyncio.timeout(_LIMIT):
                    return await work(self._rows)
            except Exception as error:  # noqa: BLE001 - of any driver
                raise QueueUnavailable(await describe_outbox_failure(error, self._rows.engine)) from None

        with self._lock:
            if self._runner is None:
                self._runner = asyncio.Runner()
            return self._runner.run(run())


async def _nothing(_rows: object) -> None:
    pass
