"""The pause commands as a user runs them, and what the mail server saw of a pause."""

import time
from pathlib import Path

from support.smtpd import SmtpServer
from support.workers import viperctl

__all__ = ["STOPS_WITHIN", "mails_since", "pause", "resume"]

STOPS_WITHIN = 1.0  # seconds after the command's return; no transaction begins later


def pause(project: Path, *options: str) -> float:
    """Run ``viperctl email pause``; returns the moment (``time.monotonic()``) of its return."""
    return _run(project, "pause", *options)


def resume(project: Path, *options: str) -> float:
    """Run ``viperctl email resume``; returns the moment of its return."""
    return _run(project, "resume", *options)


def mails_since(server: SmtpServer, moment: float) -> list[str]:
    """MAIL commands that the server read after ``moment``."""
    return [command.line for command in server.commands if command.verb == "MAIL" and command.at > moment]


def _run(project: Path, command: str, *options: str) -> float:
    done = viperctl("email", command, *options, "--project", project)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic()
