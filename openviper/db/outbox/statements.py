"""Run the statements that each message needs at little cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

__all__ = ["Statement"]


class _Compiled(NamedTuple):
    """``order``: the names of the values in the order in which the driver takes them; None: it takes them by name."""

    text: str
    order: Sequence[str] | None
    constants: Mapping[str, Any]

    def arguments(self, values: Mapping[str, Any]) -> Any:
        """Return ``values`` and the statement's own constants as the driver takes them."""
        if self.constants:
            values = {**self.constants, **values}
        return dict(values) if self.order is None else tuple([values[name] for name in self.order])


class Statement:
    """A statement of SQLAlchemy's that is compiled once for each dialect; values and rows are the driver's own.

    SQLAlchemy itself looks a statement up by its structure at each execution, and its adapter for aiosqlite changes to
    the connection's thread to open, to execute, to read and to close a cursor. Each costs more than the database does.
    """

    def __init__(self, statement: Any) -> None:
        self._statement = statement
        self._compiled: WeakKeyDictionary[Dialect, _Compiled] = WeakKeyDictionary()

    def run(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any]:
        """Execute it, and return the rows of its RETURNING.

        Raises:
            DBAPIError: it failed.
        """
        if _translates(connection):
            result = connection.execute(self._statement, values)
        else:
            compiled = self._compile(connection.dialect)
            arguments = compiled.arguments(values)
            if connection.dialect.driver == "aiosqlite":
                return _run_in_one_step(connection, compiled.text, arguments)
            result = connection.exec_driver_sql(compiled.text, arguments)
        return result.all() if result.returns_rows else ()

    def run_many(self, connection: Connection, values: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each of ``values``.

        Raises:
            DBAPIError: it failed.
        """
        if _translates(connection):
            connection.execute(self._statement, values)
        else:
            compiled = self._compile(connection.dialect)
            connection.exec_driver_sql(compiled.text, [compiled.arguments(each) for each in values])

    def _compile(self, dialect: Dialect) -> _Compiled:
        found = self._compiled.get(dialect)
        if found is None:
            compiled = self._statement.compile(dialect=dialect)
            constants = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[dialect] = _Compiled(str(compiled), compiled.positiontup, constants)
        return found


def _translates(connection: Connection) -> bool:
    """True for an engine of the application that puts a schema before the names of tables."""
    return "schema_translate_map" in connection.get_execution_options()


def _run_in_one_step(connection: Connection, text: str, values: Any) -> Sequence[Any]:
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy's own methods do
    driver: Any = connection.connection.driver_connection
    try:
        rows: Sequence[Any] = await_only(driver.execute_fetchall(text, values))
    except Exception as error:
        dialect = connection.dialect
        raise DBAPIError.instance(
            text, values, error, dialect.loaded_dbapi.Error, hide_parameters=True, dialect=dialect
        ) from error
    return rows
