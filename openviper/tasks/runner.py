"""Refuse to run a worker that has nothing to do, where Dramatiq's own command was started by hand."""

import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from openviper.conf import describe_origin
from openviper.exceptions import ImproperlyConfigured

__all__ = ["check_modules", "refuse_worker"]

_REMEDY = "queued mail and tasks are run by `viperctl runworker PATH`, with the project's folder as PATH"


def check_modules() -> None:
    """End a worker of Dramatiq's command that was given one of our own modules, which declare no actors.

    It would come up on Dramatiq's default broker, whatever ``TASKS`` says, and wait there for nothing.
    """
    if not _in_dramatiq():
        return
    given = next((each for each in sys.argv[1:] if each.startswith("openviper.") and _is_module(each)), None)
    if given is not None:
        refuse_worker(f"{given}: {describe_origin()}; this module declares no tasks: {_REMEDY}")


def refuse_worker(problem: str) -> NoReturn:
    """End the worker process with one line in Dramatiq's own command; raise elsewhere.

    Raises:
        ImproperlyConfigured: the worker was started by other code.
    """
    if _in_dramatiq():
        sys.exit(f"dramatiq: {problem}")
    raise ImproperlyConfigured(problem)


def _is_module(name: str) -> bool:
    with suppress(ImportError, ValueError):  # as "openviper.tasks:get_broker", or a queue's name
        return find_spec(name) is not None
    return False


def _in_dramatiq() -> bool:
    if "dramatiq.cli" not in sys.modules or not sys.argv:
        return False
    program = Path(sys.argv[0])
    return program.stem in ("dramatiq", "dramatiq-gevent") or program.parent.name == "dramatiq"
