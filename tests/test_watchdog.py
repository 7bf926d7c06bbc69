"""A test run that is killed leaves none of its servers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.patience import PATIENCE

_RUN = """
import subprocess, time
from support.watchdog import Watchdog
server = subprocess.Popen(["/bin/sh", "-c", "sleep 600 & wait"], start_new_session=True)
watchdog = Watchdog(server.pid)
{then}
print(server.pid, flush=True)
time.sleep(600)
"""


def _run(then: str = "") -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN.format(then=then)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    group = int(run.stdout.readline())
    run.kill()
    run.wait(PATIENCE)
    run.stdout.close()
    return group


def _alive(group: int) -> bool:
    found = subprocess.run(["pgrep", "-g", str(group), "-r", "S,R,D"], capture_output=True, text=True)
    return bool(found.stdout.split())


def test_the_servers_of_a_killed_run_end_with_it() -> None:
    """Children of the server as well."""
    group = _run()
    deadline = time.monotonic() + PATIENCE
    while _alive(group):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_closed_watchdog_touches_nothing() -> None:
    group = _run("watchdog.close()")
    time.sleep(1)
    assert _alive(group)
    os.killpg(group, signal.SIGKILL)
