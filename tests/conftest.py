"""Fixtures and rules for every test: asyncio, no blocking call on the event loop, no settings from outside.

Tests marked ``long`` run with ``--long`` only; leaving them out is no skip.
"""

import gc
import logging
import os
from collections.abc import Generator, Iterator

import hypothesis
import pytest
from blockbuster import blockbuster_ctx

from openviper.conf import settings

# How long one example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, too")


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if config.getoption("--long") else "tests marked long are left out; --long runs them, too"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_collection_finish() -> None:
    # Ten thousand collected tests are many objects; without this each collection of garbage would visit them all.
    gc.collect()
    gc.freeze()
    # Importing a test's Litestar application gives the root logger a level and a handler.
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__.startswith("_pytest.")]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> Iterator[None]:
    """A file read, a sleep, a DNS or socket call of our code on the event loop raises BlockingError.

    One context for the package and the shop: of two that are nested, only the inner one would look.
    """
    with blockbuster_ctx(["openviper", "example_shop.shop"]) as guard:
        for function in guard.functions.values():
            # Coverage guards its data with a lock where threads are started.
            function.can_block_in("coverage/collector.py", {"lock_data"})
            # asyncpg itself looks for certificates and passwords in files when it connects.
            function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args", "_dot_postgresql_path"})
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer has set for an own project must not reach a test."""
    for name in list(os.environ):
        if name.startswith(("EMAIL_", "OPENVIPER_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """What a framework or a command does to the root logger ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def unloaded_settings(clean_environment: None) -> Iterator[None]:
    """Every test begins as a fresh process does: nothing has read a setting yet."""
    settings._install(None)
    yield
    settings._install(None)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # On a laptop a missing server skips its tests; in CI that would hide that they never run.
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"a test may not be skipped in CI. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
