"""Measure this component alone: its parts, its import, and responses of an application that sends mail."""

import asyncio
import json
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from environments import HERE, Environments
from load import load
from wire import SCENARIOS, Sink

__all__ = ["import_cost", "parts", "responses"]

_NOT_BEFORE_NEEDED = ("sqlalchemy", "redis", "pika", "httpx")

# The first program lists the modules of other distributions that the import loads; the second times imports.
_THIRD_PARTY = """
import sys
before = set(sys.modules)
import openviper.core.email
brought = {name for name in sys.modules if "." not in name} - before - sys.stdlib_module_names - {"openviper"}
packages = {name for name in brought if name[0] != "_" and sys.modules[name].__spec__}
print(*(name for name in sys.modules if name.partition(".")[0] in packages and sys.modules[name].__spec__))
"""
_TIMED = """
import importlib, sys, time
start = time.perf_counter()
for name in sys.argv[1:]:
    importlib.import_module(name)
print(time.perf_counter() - start)
"""


def parts(python: str, content: Path) -> dict[str, float]:
    """Return the microseconds of each part of a send, and of converting HTML to text."""
    done = _run([python, str(HERE / "micro.py"), "--content", str(content)])
    measured: dict[str, float] = json.loads(done.splitlines()[-1])
    return measured


def import_cost(python: str, rounds: int) -> dict[str, Any]:
    """Measure the import of ``openviper.core.email`` in a fresh process, in milliseconds.

    ``whole`` is the total; ``above`` subtracts importing the packages it loads, some of which (pydantic) load parts of
    themselves only when used; ``above_modules`` subtracts all modules that are loaded from those packages.
    """
    modules = _run([python, "-I", "-c", _THIRD_PARTY]).split()
    packages = [name for name in modules if "." not in name]
    programs = {"whole": ["openviper.core.email"], "packages": packages, "modules": modules}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, imports in programs.items():
            taken[name].append(float(_run([python, "-I", "-c", _TIMED, *imports])) * 1000)
    median = {name: statistics.median(times) for name, times in taken.items()}
    return {
        "whole": median["whole"],
        "above": median["whole"] - median["packages"],
        "above_modules": median["whole"] - median["modules"],
        "too_early": sorted(set(packages) & set(_NOT_BEFORE_NEEDED)),
    }


def responses(environments: Environments, content: Path, *, rate: float, count: int) -> dict[str, Any]:
    """Measure response times in milliseconds, of an application that sends mail in each request and of one without.

    Raises:
        SystemExit: a message did not arrive as it was sent.
    """
    scenario = next(each for each in SCENARIOS if each.name == "chunking")
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(environments.own, scenario, content))
        without = stack.enter_context(_Application(environments.own, content))
        mailing = stack.enter_context(_Application(environments.own, content, "--mail", str(sink.port)))
        latencies = asyncio.run(load((without.port, mailing.port), rate=rate, count=count))
        mailing.close()
        seen = sink.report()
    if not seen["messages"] == seen["whole"] >= count:
        raise SystemExit(f"responses: {count} messages and the warm-up's were sent, but the server has received {seen}")
    shown = {"p50": 50, "p99": 99}
    result: dict[str, Any] = {
        name: {key: latency.percentile(percent) for key, percent in shown.items()}
        for name, latency in zip(("without", "with"), latencies, strict=True)
    }
    return result


class _Application:
    """``webapp.py`` as a process."""

    def __init__(self, python: str, content: Path, *arguments: str) -> None:
        command = [python, str(HERE / "webapp.py"), "--content", str(content), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process after it has delivered its mail."""
        if self._process.poll() is None:
            self._process.communicate(timeout=60)

    def __enter__(self) -> "_Application":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[:2]}: {done.stderr[-2000:]}")
    return done.stdout.strip()
