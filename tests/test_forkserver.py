"""Programs that are forked from a fork server run as in an interpreter of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Cli
from support.forkserver import PROGRAMS, ForkedProcess, run, start
from support.patience import PATIENCE

COMMAND: list[str | Path] = [PROGRAMS / "viperctl", "email", "config"]

# Everything that a program can see of its process and that is the same in each run.
SEEN = """
import __main__, gc, json, os, signal, sys, threading, warnings
seen = {
    "arguments": sys.argv, "path": sys.path, "folder": os.getcwd(), "main": [__main__.__name__, __main__.__file__],
    "variables": {**os.environ}, "flags": [*sys.flags], "executable": sys.executable, "umask": os.umask(0o22),
    "streams": [[stream.fileno(), stream.encoding, stream.errors, stream.line_buffering, stream.write_through,
                 type(stream.buffer).__name__] for stream in (sys.stdout, sys.stderr)], "input": sys.stdin.encoding,
    "files": [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")],
    "signals": [str(signal.getsignal(number)).split(" at ")[0] for number in range(1, 32)],
    "blocked": [*signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "session": os.getsid(0) == os.getpid(), "threads": [thread.name for thread in threading.enumerate()],
    "collects": [gc.isenabled(), gc.get_threshold()],
    "resource warnings": [action for action, _, kind, _, _ in warnings.filters if kind is ResourceWarning][0],
}
with open("seen.json", "w") as file:
    json.dump(seen, file)
"""
WAITS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what it starts in the background
open("begun", "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize(
    "more", [{"PYTHONUNBUFFERED": ""}, {"PYTHONWARNINGS": "always::ResourceWarning", "PYTHONUNBUFFERED": "1"}]
)
@pytest.mark.parametrize("session", [True, False], ids=["own session", "shared session"])
def test_a_forked_program_sees_what_it_sees_in_an_interpreter_of_its_own(
    tmp_path: Path, more: dict[str, str], session: bool
) -> None:
    (tmp_path / "settings.py").write_text(SEEN)
    environment = {**os.environ, "SOME": "thing", **more}
    seen = []
    for begin in (start, subprocess.Popen):
        with (tmp_path / "output").open("w") as output:
            process = begin(
                COMMAND, cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=session
            )
        assert process.wait(PATIENCE) == 0
        seen.append(json.loads((tmp_path / "seen.json").read_text()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("words", [["email", "config"], ["email", "nothing"], ["email", "--help"]])
def test_a_forked_program_prints_and_ends_as_in_an_interpreter_of_its_own(tmp_path: Path, words: list[str]) -> None:
    command: list[str | Path] = [PROGRAMS / "viperctl", *words]
    fresh = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    forked = run(command, cwd=tmp_path)
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_what_is_open_at_the_end_of_the_interpreter_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("import socket\nleft = socket.socket()\n")
    with pytest.raises(AssertionError, match=r"ResourceWarning: unclosed <socket"):
        Cli(tmp_path).run("email", "config")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_any_process(tmp_path: Path, number: int) -> None:
    (tmp_path / "settings.py").write_text(WAITS)
    with (tmp_path / "output").open("w") as output:
        process = start(COMMAND, cwd=tmp_path, stdout=output, stderr=output)
    until((tmp_path / "begun").exists)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.send_signal(number)
    assert process.wait(PATIENCE) == (1 if number == signal.SIGINT else -number)
    assert ("Aborted!" in (tmp_path / "output").read_text()) == (number == signal.SIGINT)


def test_a_process_keeps_its_id_until_its_end_was_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as output:
        process = start(COMMAND, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    os.killpg(process.pid, signal.SIGKILL)  # nobody else can have this number
    assert process.wait() == 0
    until(lambda: not Path(f"/proc/{process.pid}").exists())


@pytest.mark.parametrize(
    ("command", "environment", "kind"),
    [
        (COMMAND, {}, ForkedProcess),
        ([PROGRAMS / "openviper", "--version"], {"EMAIL_HOST": "mail.example"}, ForkedProcess),
        ([sys.executable, "-c", ""], {}, subprocess.Popen),
        (COMMAND, {"PYTHONPATH": "."}, subprocess.Popen),
        (COMMAND, {"PYTHONWARNINGS": "error"}, subprocess.Popen),
        (COMMAND, {"PYTHONUTF8": "1"}, subprocess.Popen),
        (COMMAND, {"LC_ALL": "POSIX"}, subprocess.Popen),
    ],
)
def test_a_program_is_forked_where_it_would_not_notice(
    tmp_path: Path, command: list[str | Path], environment: dict[str, str], kind: type[Any]
) -> None:
    with Path(os.devnull).open("w") as nowhere:
        process = start(command, cwd=tmp_path, env={**os.environ, **environment}, stdout=nowhere, stderr=nowhere)
    assert type(process) is kind
    assert process.wait(PATIENCE) == 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
