"""Granian and gunicorn, with its own ASGI worker and with uvicorn's, run an application that is wrapped, or is not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.patience import PATIENCE
from support.ports import lasting_port
from support.smtpd import SmtpServer

from openviper.conf import SETTINGS_VARIABLE

APPS = Path(__file__).parents[1] / "apps"
SERVERS = {
    "granian": ["granian", "--interface", "asgi", "--port", "{port}"],
    "granian with two workers": ["granian", "--interface", "asgi", "--workers", "2", "--port", "{port}"],
    "gunicorn": ["gunicorn", "-k", "asgi", "-b", "127.0.0.1:{port}"],
    "gunicorn with uvicorn's worker": ["gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"],
}
pytestmark = [pytest.mark.long, pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS.keys())]


@contextmanager
def serving(command: list[str], app: str, folder: Path, **variables: str) -> Iterator[tuple[str, Path]]:
    """Run a server; yield its address, and the file that its output goes to."""
    port, log = lasting_port(), folder / "server.log"
    arguments = ["-m", *(part.format(port=port) for part in command), app]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=APPS,
            env={**os.environ, "PYTHONPATH": f"{APPS}:{folder}", **variables},
            stdout=output,
            stderr=output,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{url}/nothing", timeout=PATIENCE)
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield url, log
    finally:
        process.terminate()
        process.wait(PATIENCE)


def modes(url: str, times: int) -> set[str]:
    return {httpx.get(f"{url}/order", timeout=PATIENCE).json()["mode"] for _ in range(times)}


def test_an_unwrapped_application_is_warned_of(command: list[str], tmp_path: Path) -> None:
    with SmtpServer() as smtp:
        email = {"EMAIL_HOST": smtp.host, "EMAIL_PORT": str(smtp.port), "EMAIL_DEFAULT_SENDER": "shop@example.test"}
        with serving(command, "starlette_app:application", tmp_path, **email) as (url, log):
            assert modes(url, 3) == {"inline"}
        text = f"{command[0]} runs an application to which mail is not attached, so requests wait for the mail server"
        assert text in log.read_text()
        assert f"then `{command[0]} module:app`" in log.read_text()


def test_a_wrapped_application_is_not_warned_of_and_shows_its_page(command: list[str], tmp_path: Path) -> None:
    email = {"backend": "MemoryBackend", "default_sender": "shop@example.test"}
    (tmp_path / "notice_settings.py").write_text(f"DEBUG = True\nEMAIL = {email!r}\n")
    variables = {SETTINGS_VARIABLE: "notice_settings"}
    with serving(command, "starlette_app:app", tmp_path, **variables) as (url, log):
        assert modes(url, 3) == {"deferred"}
    lines = log.read_text().splitlines()
    assert not any("mail is not attached" in line for line in lines)
    assert "openviper.email: inbox page: /_mail of this application" in lines
    assert f"openviper.email: inbox page: {url}/_mail" in lines
