"""The database's clock in SQL, as Unix seconds: processes whose clocks differ agree on it."""

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["Clock", "Now"]


class Clock(FunctionElement[float]):
    """The database's clock in Unix seconds; the moment of the call, also in a long transaction."""

    type = Double()
    inherit_cache = True


class Now(FunctionElement[float]):
    """The database's clock at the beginning of the transaction, which an index can be searched by."""

    type = Double()
    inherit_cache = True


@compiles(Clock, "postgresql")
def _clock_on_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(Now, "postgresql")
def _now_on_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM now()) AS DOUBLE PRECISION)"


@compiles(Clock)
@compiles(Now)
def _on_sqlite(_element: FunctionElement[float], _compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
