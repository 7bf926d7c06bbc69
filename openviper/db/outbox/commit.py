"""Store held mail with the commit that promises it: rows are inserted in the last moment of the transaction."""

from weakref import WeakKeyDictionary, ref

from sqlalchemy import URL, Connection, Engine, event, select
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from openviper.db.engines import lacks_table
from openviper.db.errors import OutboxMisplaced, OutboxNotCreated
from openviper.db.outbox.keeper import OutboxKeeper
from openviper.db.outbox.rows import NewRow
from openviper.db.outbox.store import delete_rows, insert_rows, new_row_id
from openviper.db.outbox.tables import DATABASE_ID, meta_table, outbox_table
from openviper.db.records import open_record_of
from openviper.db.transaction import Record

__all__ = ["StoredSend", "check_database", "insert_in", "misplaced", "stored_id", "translate_missing_table"]

_sessions: "WeakKeyDictionary[Connection, ref[Session]]" = WeakKeyDictionary()
_CLAUSE = {"clause": outbox_table}  # by which a session with several databases chooses one


class StoredSend:
    """A message that the commit of the open transaction stores; :attr:`inserted` once that has been written.

    ``row_id`` is in the hands of ``keeper`` from the commit on, unless the message is due later.
    """

    __slots__ = ("inserted", "keeper", "row", "row_id", "taking_along")

    def __init__(self, keeper: OutboxKeeper, row: NewRow) -> None:
        self.keeper = keeper
        self.row: NewRow = row
        self.row_id = new_row_id()
        self.inserted = False
        self.taking_along: list[str] = []

    def committed(self) -> None:
        """Note that the transaction is committed."""
        if self.inserted and self.row.due_at is None:
            self.keeper.take(self.row_id)
        self.keeper.deleted(self.taking_along)


@event.listens_for(Session, "before_commit")
def _find_connection(session: Session) -> None:
    """Note which connection will carry the COMMIT, and open one if the transaction has run no statement.

    The event is sent before the commit's own flush, whose hooks may still send, and for savepoints as well.
    """
    record = open_record_of(session)
    if record is None or not _has_stored(record):
        if not (session.new or session.dirty or session.deleted):
            return
        try:
            session.get_bind(clause=outbox_table)
        except UnboundExecutionError:
            return
    _sessions[session.connection(bind_arguments=dict(_CLAUSE))] = ref(session)


@event.listens_for(Engine, "commit")
def _insert_held(connection: Connection) -> None:
    kept = _sessions.pop(connection, None)
    session = None if kept is None else kept()
    record = None if session is None else open_record_of(session)
    if record is None:
        return
    # Without those of a thread's own event loop, which has ended before: they go on from memory.
    stored = [held.stored for held in record.held if isinstance(held.stored, StoredSend) and held.stored.keeper.usable]
    if not stored:
        return
    keeper = stored[0].keeper
    for token in {each.keeper.token for each in stored}:
        insert_in(connection, [(each.row_id, each.row) for each in stored if each.keeper.token == token], token=token)
    for each in stored:
        each.inserted = True
    if connection.dialect.name == "sqlite" and (along := keeper.deletions()):
        # This one writes anyway. On PostgreSQL it would wait for, or fail at, a row that another one has locked.
        delete_rows(connection, along, token=keeper.token)
        stored[0].taking_along = along


def _has_stored(record: Record | None) -> bool:
    while record is not None:
        if any(held.stored is not None for held in record.held):
            return True
        record = record.parent
    return False


def insert_in(connection: Connection, rows: list[tuple[str, NewRow]], *, token: str | None) -> None:
    """Insert rows in the transaction of ``connection``.

    Raises:
        OutboxNotCreated: the database lacks the tables.
    """
    try:
        insert_rows(connection, rows, token=token)
    except DBAPIError as error:
        error.hide_parameters = True  # they are the message
        translate_missing_table(error)
        raise


def translate_missing_table(error: DBAPIError) -> None:
    """Raise OutboxNotCreated if ``error`` says that a table or a column is missing."""
    if lacks_table(error):
        raise OutboxNotCreated(
            "the outbox's tables are missing, or of another version: add openviper.db.outbox_tables(metadata) to your "
            "migrations, or run `viperctl email outbox create`"
        ) from None


async def check_database(session: AsyncSession, keeper: OutboxKeeper) -> None:
    """Check that ``session`` writes to the database from which the relay reads, and commits in one phase.

    Raises:
        OutboxMisplaced: it does not.
    """
    if session.sync_session.twophase:
        raise OutboxMisplaced(
            "this session commits in two phases (twophase=True), which the outbox does not support: send the message "
            "after the transaction, or through a session of its own"
        )
    engine = session.sync_session.get_bind(clause=outbox_table).engine
    store = keeper.store
    if engine is store.engine.sync_engine or engine in store.same_database:
        return
    own = await store.database_id()
    same = engine.url.set(password=None) == store.engine.url.set(password=None)
    if own is not None:
        same = await session.run_sync(_id_of) == own
    if not same:
        raise misplaced("session", engine.url, store.engine.url)
    store.same_database.add(engine)


def misplaced(what: str, url: URL, outbox: URL) -> OutboxMisplaced:
    """Return the error of a session or connection (``what``) on another database than the outbox."""
    return OutboxMisplaced(
        f"this {what} is on another database ({url.render_as_string()}) than the outbox ({outbox.render_as_string()}), "
        'whose relay would never find the message: set EMAIL["outbox"] to the dotted path of this engine, or send the '
        "message after the transaction"
    )


def _id_of(session: Session) -> str | None:
    return stored_id(session.connection(bind_arguments=dict(_CLAUSE)))


def stored_id(connection: Connection) -> str | None:
    """Return the random id of the database of ``connection``; None if it has none, or no such table."""
    try:
        with connection.begin_nested():  # a failed statement would end the transaction on PostgreSQL
            return connection.execute(select(meta_table.c.value).where(meta_table.c.name == DATABASE_ID)).scalar()
    except DBAPIError:  # it has no such table
        return None
