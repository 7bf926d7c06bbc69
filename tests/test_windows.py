"""Without what Windows lacks, everything can be imported and mail goes out; the worker's command names its need."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

# Imports everything, so that the libraries are loaded on the system as it is; then takes away what Windows lacks, and
# imports our modules once more.
_PREPARE = """
import importlib, os, pkgutil, signal, socket, sys
import openviper

names = [found.name for found in pkgutil.walk_packages(openviper.__path__, "openviper.")]
names = ["openviper", *(name for name in names if not name.endswith("__main__"))]
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] in ("openviper", "prometheus_client")]:
    del sys.modules[name]  # the second for its registry, which takes each metric once
unix = socket.AF_UNIX
missing = {
    os: "register_at_fork fork forkpty geteuid getuid getgid getegid getppid killpg setsid setpgid fchmod chown mkfifo "
    "uname sysconf openpty sched_getaffinity O_CLOEXEC O_NONBLOCK O_NOCTTY O_DIRECTORY O_NOFOLLOW O_SYNC",
    signal: "SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE pthread_sigmask pthread_kill sigwait "
    "setitimer alarm",
    socket: "AF_UNIX SO_REUSEPORT MSG_DONTWAIT sendmsg",
}
for module, attributes in missing.items():
    for attribute in attributes.split():
        if hasattr(module, attribute):
            delattr(module, attribute)
for name in ("fcntl", "pwd", "grp", "termios", "tty", "pty", "resource", "syslog", "crypt", "spwd", "posix"):
    sys.modules[name] = None
for name in names:
    importlib.import_module(name)
"""


def _run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _PREPARE + code], capture_output=True, text=True, timeout=PATIENCE, cwd=folder
    )


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    done = _run("print(len(names))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


def test_mail_with_an_attached_file_goes_out(tmp_path: Path) -> None:
    (tmp_path / "invoice.txt").write_text("Invoice")
    sending = """
import asyncio
socket.AF_UNIX = unix  # asyncio's event loop on this system needs it
from openviper.conf import override
from openviper.core.email import submit_email
for backend in ("FileBackend", "ConsoleBackend", "MemoryBackend"):
    with override(EMAIL={"backend": backend, "file_dir": "mail", "default_sender": "shop@example.com"}):
        receipt = asyncio.run(submit_email("a@example.com", "Order", text="Hi", attachments=["invoice.txt"]))
        print(backend, "accepted", *receipt.accepted)
"""
    done = _run(sending, tmp_path)
    assert done.returncode == 0, done.stderr
    for backend in ("FileBackend", "ConsoleBackend", "MemoryBackend"):
        assert f"{backend} accepted a@example.com" in done.stdout
    (message,) = (tmp_path / "mail").glob("*.eml")
    assert b"invoice.txt" in message.read_bytes()


@pytest.mark.parametrize("options", [[], ["--watch"]])
def test_the_workers_command_says_what_it_needs(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "settings.py").write_text('TASKS = {"broker": "redis", "broker_url": "redis://127.0.0.1:1"}')
    done = _run(f"from openviper.cli import viperctl; viperctl(['runworker', '.', *{options!r}])", tmp_path)
    assert done.returncode == 1
    assert "needs a POSIX system" in done.stderr
    assert "Traceback" not in done.stderr
