"""What a developer sees on stderr at the start, where nothing configures the log."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from support.lifespan import Lifespan
from support.patience import PATIENCE
from support.ports import lasting_port
from support.uvicorn import Hypercorn, Uvicorn

from openviper import OpenViper
from openviper.conf import SETTINGS_VARIABLE, override
from openviper.core.email import Email, EmailMiddleware
from openviper.core.email.asgi.notice import shows_info

MEMORY = {"backend": "MemoryBackend", "default_sender": "shop@example.test"}
APPS = Path(__file__).parents[3] / "apps"
MODES = (
    "openviper.email: mail: deferred in requests (delivered after the response), inline elsewhere, through "
    "MemoryBackend; no message broker is in use"
)
PAGE = "openviper.email: inbox page: /_mail of this application"


@pytest.fixture
def quiet_log() -> Iterator[logging.Logger]:
    """The logger as in an application that configures none; pytest's own handlers are put back afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("openviper.email")
    handlers, level = root.handlers, root.level
    root.handlers, root.level = [], logging.WARNING
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]
    yield ours
    root.handlers, root.level = handlers, level
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]


def extended(settings: dict[str, Any]) -> OpenViper:
    app = OpenViper()
    app.add_extension(Email(settings))
    return app


APPLICATIONS: list[Callable[[dict[str, Any]], Any]] = [
    lambda settings: EmailMiddleware(Starlette(), settings),
    lambda settings: Email(settings).attach(Starlette()),
    extended,
]


@pytest.mark.parametrize("make", APPLICATIONS, ids=["middleware", "attached", "extension"])
async def test_in_debug_two_lines_say_the_mode_and_where_the_inbox_is(
    make: Callable[[dict[str, Any]], Any], quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with override(DEBUG=True):
        async with Lifespan(make(MEMORY)):
            pass
    assert capsys.readouterr().err.splitlines() == [MODES, PAGE]
    assert quiet_log.handlers == []


async def test_an_inbox_that_is_off_is_said_to_be(
    quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with override(DEBUG=True):
        async with Lifespan(EmailMiddleware(Starlette(), {**MEMORY, "inbox": False})):
            pass
    assert capsys.readouterr().err.splitlines()[1] == 'openviper.email: inbox page: off: EMAIL["inbox"] is False'


async def test_without_debug_nothing_is_printed(quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with override(DEBUG=False):
        async with Lifespan(EmailMiddleware(Starlette(), MEMORY)):
            pass
    assert capsys.readouterr().err == ""


async def test_where_the_log_shows_them_the_lines_are_not_printed_twice(
    quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler()
    quiet_log.addHandler(handler)
    quiet_log.setLevel(logging.INFO)
    try:
        with override(DEBUG=True):
            async with Lifespan(EmailMiddleware(Starlette(), MEMORY)):
                pass
    finally:
        quiet_log.removeHandler(handler)
        quiet_log.setLevel(logging.NOTSET)
    assert capsys.readouterr().err.splitlines() == [MODES.removeprefix("openviper.email: ")]


@pytest.mark.parametrize(
    ("level", "handler_level", "shown"),
    [
        (logging.INFO, logging.INFO, True),
        (logging.DEBUG, logging.NOTSET, True),
        (logging.INFO, logging.WARNING, False),
        (logging.WARNING, logging.INFO, False),
    ],
)
def test_a_handler_of_a_parent_counts_by_its_level(level: int, handler_level: int, *, shown: bool) -> None:
    parent = logging.Logger("parent", level)  # noqa: LOG001 - not one that other tests share
    child = logging.Logger("child")  # noqa: LOG001
    child.parent = parent
    assert not shows_info(child)
    handler = logging.StreamHandler()
    handler.setLevel(handler_level)
    parent.addHandler(logging.NullHandler())
    parent.addHandler(handler)
    assert shows_info(child) is shown
    child.propagate = False
    assert not shows_info(child)


def project(folder: Path) -> dict[str, str]:
    (folder / "notice_settings.py").write_text(f"DEBUG = True\nEMAIL = {MEMORY!r}\n")
    return {SETTINGS_VARIABLE: "notice_settings", "PYTHONPATH": str(folder)}


def pages(server: Uvicorn) -> list[str]:
    return [line.strip() for line in server.log if "inbox page" in line]


@pytest.mark.parametrize("kind", [Uvicorn, Hypercorn])
def test_a_port_that_is_not_known_at_the_start_is_shown_with_the_first_request(
    kind: type[Uvicorn], tmp_path: Path
) -> None:
    """uvicorn opens port 0 after the startup; Hypercorn keeps its ports to itself."""
    with kind("fastapi_app:attached", APPS, project(tmp_path)) as server:
        for _ in range(2):
            assert httpx.get(f"{server.url}/order", timeout=PATIENCE).status_code == 200
        server.stop()
    assert [line.strip() for line in server.log].count(MODES) == 1
    assert pages(server) == [PAGE, f"openviper.email: inbox page: {server.url}/_mail"]


@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--host", "0.0.0.0")])
def test_uvicorns_own_port_is_shown_at_the_start(arguments: tuple[str, ...], tmp_path: Path) -> None:
    port = lasting_port()
    done = [sys.executable, "-m", "uvicorn", "fastapi_app:attached", "--app-dir", str(APPS), "--port", str(port)]
    process = subprocess.Popen(
        [*done, *arguments], env={**os.environ, **project(tmp_path)}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "inbox page" in line)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert line == f"openviper.email: inbox page: http://127.0.0.1:{port}/_mail\n"


def test_a_process_that_nobody_has_configured_is_told(tmp_path: Path) -> None:
    with Uvicorn("fastapi_app:attached", APPS) as server:
        assert server.stop()
    (line,) = [line.strip() for line in server.log if "no setting of EMAIL" in line]
    assert line == (
        "no setting of EMAIL is given, so mail goes through SMTPBackend at localhost:25; no settings module was read: "
        f"set {SETTINGS_VARIABLE}, or call settings.configure()"
    )
