"""A function that raises, importable by the processes of a pool."""

from typing import NoReturn

__all__ = ["raise_chained"]


def raise_chained(error: Exception) -> NoReturn:
    """Raise ``error`` with a cause that cannot be pickled."""
    cause = RuntimeError("the cause")
    cause.unpicklable = lambda: None  # type: ignore[attr-defined]
    raise error from cause
