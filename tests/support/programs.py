"""Run short Python programs, each in a process of its own that is forked from one with the libraries loaded.

Most of the time of a fresh interpreter goes to importing the same libraries. A server process, which multiprocessing
starts once, imports them and forks for each program; it has run nothing else, so a program meets what a fresh
interpreter would give it.
"""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from support.patience import PATIENCE
from support.run_block import run_block

__all__ = ["Ended", "run_program", "run_pytest"]

# Left out: what pytest loads as a plug-in, and would want to rewrite before.
_LIBRARIES = [
    "asgi_lifespan", "dramatiq", "fastapi", "httpx", "litestar", "markdown", "openviper.app", "openviper.cli",
    "openviper.core.email.asgi", "openviper.core.email.inbox.app", "openviper.core.email.sending", "openviper.db",
    "pydantic", "pytest", "quart", "redis", "sqlalchemy.ext.asyncio", "starlette.applications", "uvicorn",
]  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_LIBRARIES)


class Ended(NamedTuple):
    """How a program ended: its exit status and what it printed on both streams."""

    status: int | None
    output: str
    errors: str


def run_program(folder: Path, environment: Mapping[str, str]) -> Ended:
    """Run ``block.py`` and ``then.py`` of ``folder`` there, with warnings as errors; see ``run_block``."""
    return _run(folder, environment, run_block, "block.py", "then.py", "sent.json")


def run_pytest(folder: Path, environment: Mapping[str, str], *arguments: str) -> Ended:
    """Run pytest in ``folder``, with warnings as errors and without a cache."""
    # The process has loaded some plug-ins already, whose own assertions need not be rewritten.
    quiet = ["-W", "error", "-W", "ignore:Module already imported so cannot be rewritten"]
    # Plug-ins that only this project's own tests use, and that take seconds to load.
    others = [word for name in ("cacheprovider", "faker", "hypothesispytest") for word in ("-p", f"no:{name}")]
    return _run(folder, environment, _pytest, *quiet, "-q", *others, *arguments)


def _run(folder: Path, environment: Mapping[str, str], program: Callable[..., None], *arguments: str) -> Ended:
    process = _context.Process(target=_begin, args=(str(folder), dict(environment), program, arguments))
    process.start()
    _wait(process)
    output, errors = [(folder / f".{name}").read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return Ended(process.exitcode, output, errors)


def _wait(process: ForkServerProcess) -> None:
    try:
        process.join(PATIENCE)
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def _begin(folder: str, environment: Mapping[str, str], program: Callable[..., None], arguments: Sequence[str]) -> None:
    """Make this process as an interpreter that was started in ``folder`` would be, and run the program."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    for descriptor, name in ((1, ".stdout"), (2, ".stderr")):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    program(*arguments)


def _pytest(*arguments: str) -> None:
    raise SystemExit(pytest.main([*arguments]))
