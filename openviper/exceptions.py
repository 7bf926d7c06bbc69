"""Errors that every part of the package shares; none of them knows mail."""

from typing import Any, TypeVar

__all__ = ["ImproperlyConfigured", "MissingDependency", "OpenViperError", "PicklableError"]

E = TypeVar("E", bound="PicklableError")


class PicklableError(Exception):
    """Base of errors that survive ``pickle``, ``copy`` and process pools, whatever arguments their ``__init__`` takes.

    An exception is normally rebuilt by calling its class with ``args``, which fails where ``__init__`` takes others.
    This one is rebuilt without ``__init__``, from ``args`` (the text) and its attributes. Like any exception it leaves
    its cause, context and traceback behind, so a cause that cannot be pickled does no harm.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = super().__reduce__()  # of the builtin base: ImportError has attributes beside ``__dict__``
        assert isinstance(reduced, tuple)
        _, args, *state = reduced
        return _rebuild, (type(self), args), *state


def _rebuild(cls: type[E], args: tuple[Any, ...]) -> E:
    error = cls.__new__(cls, *args)
    # ImportError and OSError take their fields from the arguments of ``__init__``.
    builtin: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    builtin.__init__(error, *args)
    error.args = args
    return error


class OpenViperError(PicklableError):
    """Base of every error that this package raises on purpose."""


class ImproperlyConfigured(OpenViperError):
    """A setting is missing or wrong; the text begins with the setting, e.g. ``EMAIL["port"]: ...``.

    Not a delivery error, so that catching a failed delivery never hides a typo in settings.
    """


class MissingDependency(ImproperlyConfigured, ImportError):
    """An optional library is not installed; the text has the pip line that installs it."""
