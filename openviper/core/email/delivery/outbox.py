"""Keep accepted mail in the application's own database until it is delivered (``EMAIL["outbox"]``)."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.message import EmailMessageData, OutgoingMessage
from openviper.core.email.queue.enqueue import prepare_alone
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.outbox_engine import (
    close_connections,
    describe_missing,
    describe_outbox_failure,
    outbox_engine,
    own_outbox_engine,
)
from openviper.core.email.queue.outbox_rows import answer_of, new_row
from openviper.core.email.queue.retry import Decision, QueuePolicy
from openviper.core.email.settings import EmailSettings
from openviper.db.completion import time_limit
from openviper.db.encoding import encode_with
from openviper.db.errors import OutboxNotCreated
from openviper.db.outbox.rows import DELETE, NewRow
from openviper.db.transaction import Record, current_record
from openviper.exceptions import ImproperlyConfigured
from openviper.text import counted, shown

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from openviper.db.outbox.commit import StoredSend
    from openviper.db.outbox.keeper import OutboxKeeper
    from openviper.db.outbox.store import OutboxStore

__all__ = ["Outbox", "StoredMessage"]

logger = logging.getLogger("openviper.email")

_ID_LIMIT = 2.0  # seconds to find out which database the relays read


class StoredMessage:
    """A message that has a row in the outbox, which this process has in hand."""

    __slots__ = ("_head", "_outbox", "_recorded", "for_relay", "progress", "row_id")

    def __init__(self, outbox: "Outbox", row_id: str, row: NewRow) -> None:
        self._outbox = outbox
        self.row_id = row_id
        self.for_relay = row.due_at is not None  # not leased here, also when its time has come meanwhile
        self.progress = Progress.from_json(row.progress)
        self._head = row.head
        self._recorded: asyncio.Future[bool] | None = None

    @property
    def policy(self) -> QueuePolicy:
        """Return the rules of its retries: the queue's, since the outbox keeps it as long."""
        return self._outbox.policy

    async def begin(self) -> bool:
        """Begin an attempt; False if another process has taken it.

        Raises:
            QueueUnavailable: the database has not noted the attempt, without which a message is not to be sent here.
        """
        try:
            return self.row_id in await self._outbox.keeper.begin([self.row_id])
        except Exception as error:  # noqa: BLE001 - of any driver
            raise QueueUnavailable(await self._outbox.describe_failure(error)) from None

    def settle(self, decision: Decision) -> None:
        """Record what follows from an attempt: a retry is the relay's."""
        answer = answer_of(decision, self._outbox.settings, self._head)
        self._recorded = self._outbox.keeper.answer(self.row_id, answer)

    def delete(self) -> None:
        """Forget it: the broker has it, or nobody is to have it."""
        self._recorded = self._outbox.keeper.answer(self.row_id, DELETE)

    def abandon(self, *, nothing_sent: bool) -> None:
        """Leave it to the relay of another process, at once if nothing of it can have been sent."""
        if not nothing_sent:
            self._outbox.maybe_sent.add(self.row_id)

    async def recorded(self) -> None:
        """Return when the database knows what became of it, or does not answer."""
        if self._recorded is not None and not self._recorded.done():
            await self._outbox.keeper.hurry()


class Outbox:
    """The outbox of one mailer: stores its messages, and records what becomes of them."""

    def __init__(self, settings: EmailSettings, keeper: "OutboxKeeper") -> None:
        self.settings = settings
        self.keeper = keeper
        self.policy = QueuePolicy(settings)
        self.maybe_sent: set[str] = set()  # rows whose lease has to end by itself, so that the next attempt is repeated
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, settings: EmailSettings) -> "Outbox | None":
        """Return the outbox of the running loop; None without the setting. Connects to nothing yet.

        Raises:
            ImproperlyConfigured: the setting names no engine, or one of a database that is not supported.
            MissingDependency: SQLAlchemy or the driver is not installed.
        """
        if settings.outbox is None:
            return None
        engine = await outbox_engine(settings.outbox)
        keeper_class, store = await asyncio.to_thread(_load, engine)
        # Only "hold" asks what was being sent when a process died, so that only then a commit is spent on it.
        return cls(settings, keeper_class(store, marks_attempts=settings.on_uncertain == "hold"))

    async def check(self) -> None:
        """At startup: log what would make transactions with mail fail. Never fails itself."""
        from openviper.db.outbox.tables import database_id, missing_tables  # with the setting only

        engine = self.keeper.store.engine
        try:
            async with asyncio.timeout(time_limit()):
                missing = await missing_tables(engine)
                if not missing and await self.keeper.store.database_id() is None:
                    async with engine.begin() as connection:
                        await connection.run_sync(database_id)
            if missing:
                logger.error('EMAIL["outbox"]: transactions with mail will fail: %s', describe_missing(engine, missing))
        except Exception as error:  # noqa: BLE001 - of any driver; the database may answer later
            logger.warning(
                'EMAIL["outbox"]: %s does not answer (%s)', engine.url.render_as_string(), type(error).__name__
            )

    async def prepare(self, message: OutgoingMessage, schedule: Schedule) -> "StoredSend":
        """Return ``message`` as the commit of the open transaction stores it.

        Raises:
            OutboxMisplaced: the transaction is of another database.
        """
        from openviper.db.outbox.commit import StoredSend, check_database

        record = current_record()
        if record is not None and record.scope is not None:
            await check_database(record.scope, self.keeper)
        return StoredSend(self.keeper, await self._row(message, schedule))

    def taken(self, stored: "StoredSend") -> StoredMessage | None:
        """Return the message that a commit has stored; None if it has not."""
        return StoredMessage(self, stored.row_id, stored.row) if stored.inserted else None

    async def store(self, messages: Sequence[tuple[OutgoingMessage, float | None]]) -> list[StoredMessage | None]:
        """Store messages that go on from memory, in one INSERT, each with its ``expires_at`` (Unix seconds).

        None is returned for each where the database does not answer.
        """
        try:
            rows = [await self._row(message, Schedule(None, expires_at)) for message, expires_at in messages]
            ids = await self.keeper.insert(rows)
        except Exception as error:  # noqa: BLE001 - of any driver; the mail is delivered all the same
            logger.warning(
                "%s not in the outbox, and lost if this process is killed before the delivery: %s",
                counted(len(messages), "message"),
                await self.describe_failure(error),
            )
            return [None] * len(messages)
        return [StoredMessage(self, row_id, row) for row_id, row in zip(ids, rows, strict=True)]

    async def store_for_relay(
        self, messages: Sequence[tuple[OutgoingMessage, Schedule]], record: Record | None = None
    ) -> None:
        """Store messages that a relay is to deliver: in the transaction of ``record``, or else in one of their own.

        Raises:
            QueueUnavailable: the database has not accepted them.
            OutboxMisplaced: the transaction is of another database.
            OutboxNotCreated: the database lacks the tables.
        """
        from openviper.db.outbox.commit import check_database, insert_in
        from openviper.db.outbox.store import new_row_id

        rows = [(new_row_id(), await self._row(message, schedule)) for message, schedule in messages]
        if record is not None:
            session = record.scope
            await check_database(session, self.keeper)
            await session.run_sync(lambda sync: insert_in(_connection(sync), rows, token=None))
            return
        try:
            async with asyncio.timeout(time_limit()), self.keeper.store.engine.begin() as connection:
                await connection.run_sync(insert_in, rows, token=None)
        except OutboxNotCreated:
            raise
        except Exception as error:  # noqa: BLE001 - of any driver
            raise QueueUnavailable(f"the outbox has not accepted the message ({type(error).__name__})") from None

    async def describe_failure(self, error: Exception) -> str:
        """Return what is wrong with the database, for a log line."""
        return await describe_outbox_failure(error, self.keeper.store.engine)

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run ``work`` in a task that nobody cancels, and that ``settled`` waits for."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self, timeout: float) -> None:
        """Wait until what was spawned has ended, for at most ``timeout`` seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    async def aclose(self, timeout: float) -> None:
        """Record what is known within ``timeout`` seconds, and leave the rest to the relays of other processes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self.keeper.release(self.keeper.unanswered() - self.maybe_sent)
        except Exception as error:  # noqa: BLE001 - of any driver; the leases end by themselves
            logger.debug("leases were not ended: %s", type(error).__name__)
        await self.keeper.aclose(max(0.0, deadline - loop.time()))
        await close_connections(self.keeper.store.engine)

    async def _row(self, message: OutgoingMessage, schedule: Schedule) -> NewRow:
        due_at = schedule.due_at if schedule.later else None
        arguments = {"due_at": due_at, "expires_at": schedule.expires_at}
        if not message.prepared.attachments:  # those may be in temporary files
            return new_row(message, self.settings, **arguments)
        return await asyncio.to_thread(new_row, message, self.settings, **arguments)


def _load(engine: "AsyncEngine") -> "tuple[type[OutboxKeeper], OutboxStore]":
    # In a thread: importing SQLAlchemy's ORM takes a tenth of a second.
    import openviper.db.outbox.commit  # noqa: F401 - has commits store what is held
    from openviper.db.engines import close_late_connections
    from openviper.db.outbox.keeper import OutboxKeeper
    from openviper.db.outbox.store import OutboxStore

    close_late_connections(engine)  # the application may dispose of it while a row is written
    return OutboxKeeper, OutboxStore(engine)


def _connection(session: Any) -> Any:
    from openviper.db.outbox.tables import outbox_table

    return session.connection(bind_arguments={"clause": outbox_table})


async def _encode(data: Any, **times: Any) -> NewRow | None:
    """Return the row of a message that ``openviper.db.outbox.add`` is given; None if ``before_send`` cancels it.

    Raises:
        InvalidMessage: it cannot be sent as given.
        TypeError: it is no EmailMessageData.
    """
    if not isinstance(data, EmailMessageData):
        raise TypeError(f"add(): the message must be EmailMessageData, not {shown(type(data).__name__)}")
    schedule = Schedule.make(**times)
    settings = EmailSettings.from_settings()
    message, cancelled = await prepare_alone(data, settings)
    if cancelled is not None:
        return None
    due_at = schedule.due_at if schedule.later else None
    return await asyncio.to_thread(new_row, message, settings, due_at=due_at, expires_at=schedule.expires_at)


async def _check_database(url: Any, stored_id: str | None) -> None:
    """Check that the relays read the database at ``url``, whose id is ``stored_id``.

    Raises:
        ImproperlyConfigured: ``EMAIL["outbox"]`` is not set, or names no engine.
        OutboxMisplaced: they read another one.
    """
    from openviper.db.outbox.commit import misplaced
    from openviper.db.outbox.store import OutboxStore

    outbox = EmailSettings.from_settings().outbox
    if outbox is None:
        raise ImproperlyConfigured(
            'openviper.db.outbox.add(): EMAIL["outbox"] is not set, so no relay would deliver the message; set it to '
            '"database", or to the dotted path of an engine'
        )
    async with own_outbox_engine(outbox, lock_seconds=_ID_LIMIT) as engine:
        if await asyncio.to_thread(_same_place, url, engine.url):
            return
        try:
            async with asyncio.timeout(_ID_LIMIT):
                own = await OutboxStore(engine).database_id()
        except Exception as error:  # noqa: BLE001 - of any driver
            reason = await describe_outbox_failure(error, engine)
            logger.warning(
                "openviper.db.outbox.add(): whether relays read %s is unknown: %s", url.render_as_string(), reason
            )
            return
        if own is None or own != stored_id:
            raise misplaced("connection", url, engine.url)


def _same_place(one: Any, other: Any) -> bool:
    from openviper.db.engines import place_of

    return place_of(one) == place_of(other)


encode_with(_encode, _check_database)
