"""``viperctl email config``: every setting, its origin, no secret, and the delivery mode that mail would take."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.commands import Cli
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.workers import Worker

from openviper.core.email.settings import EmailSettings

__all__ = ["redis_server"]

SECRET = "correct-horse-battery"


def configure(project: Path, tasks: Mapping[str, object] | None = None, **email: object) -> None:
    (project / "settings.py").write_text(f"EMAIL = {email!r}\nTASKS = {tasks or {}!r}\n")


def read(cli: Cli, project: Path, **env: str) -> dict[str, Any]:
    done = cli.run("email", "config", "--project", project, "--json", **env)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_every_setting_is_shown_with_its_origin(cli: Cli, project: Path) -> None:
    configure(project, host="mail.example.com", user="shop", password=SECRET, use_tls=True, pool_size=3)
    settings = read(cli, project, EMAIL_POOL_SIZE="9", EMAIL_RATE_LIMIT="14/second")["settings"]
    assert list(settings) == list(EmailSettings.model_fields)
    assert settings["host"] == {"value": "mail.example.com", "origin": 'EMAIL["host"] in settings'}
    assert settings["username"] == {"value": "shop", "origin": 'EMAIL["user"] in settings'}
    assert settings["password"] == {"value": "***", "origin": 'EMAIL["password"] in settings'}
    assert settings["pool_size"] == {"value": 9, "origin": "EMAIL_POOL_SIZE (environment)"}
    assert settings["rate_limit"] == {"value": "14/second", "origin": "EMAIL_RATE_LIMIT (environment)"}
    assert settings["port"] == {"value": 587, "origin": "default with use_tls"}
    assert settings["timeout"] == {"value": 10, "origin": "default"}
    assert settings["xoauth2_token"] == {"value": None, "origin": "default"}


def test_a_secret_of_the_environment_is_masked_too(cli: Cli, project: Path) -> None:
    configure(project, use_ssl=True, username="shop", host="mail.example.com")
    settings = read(cli, project, EMAIL_XOAUTH2_TOKEN=SECRET)["settings"]
    assert settings["xoauth2_token"] == {"value": "***", "origin": "EMAIL_XOAUTH2_TOKEN (environment)"}


def test_without_a_broker_mail_is_deferred_in_requests(cli: Cli, project: Path) -> None:
    configure(project)
    assert read(cli, project)["mode"] == {
        "request": "deferred",
        "elsewhere": "inline",
        "backend": "SMTPBackend at localhost:25",
        "reason": "no message broker is in use",
        "redirect": None,
    }


def test_with_a_broker_that_answers_mail_is_queued(cli: Cli, project: Path, redis_server: RedisServer) -> None:
    configure(project, redis_server.tasks())
    with Worker(project):
        deadline = time.monotonic() + 3 * PATIENCE
        # The command asks the broker for a second only.
        while (mode := read(cli, project)["mode"])["request"] != "queued":
            assert time.monotonic() < deadline, mode
    assert (mode["request"], mode["elsewhere"]) == ("queued", "queued")
    assert f"redis at 127.0.0.1:{redis_server.port}" in mode["reason"]


def test_a_broker_that_is_down_is_the_reason(cli: Cli, project: Path, redis_server: RedisServer) -> None:
    tasks = {"broker": "redis", "broker_url": f"redis://:{SECRET}@127.0.0.1:{redis_server.port}/0"}
    configure(project, tasks)
    redis_server.stop()
    mode = read(cli, project)["mode"]
    assert (mode["request"], mode["elsewhere"]) == ("deferred", "inline")
    assert "does not answer" in mode["reason"]


def test_a_redirect_is_named_with_the_mode(cli: Cli, project: Path) -> None:
    configure(project)
    assert read(cli, project)["mode"]["redirect"] is None
    assert "redirected" not in cli.run("email", "config", "--project", project).stdout
    configure(project, redirect_to=["team@example.com", "qa@example.com"])
    assert read(cli, project)["mode"]["redirect"] == "redirected to team@example.com, qa@example.com"
    done = cli.run("email", "config", "--project", project)
    assert "\nAll of it     redirected to team@example.com, qa@example.com\n" in done.stdout


def test_lines_name_value_and_origin(cli: Cli, project: Path) -> None:
    configure(project, attachment_hosts=["files.example.com", "img.example.com"])
    done = cli.run("email", "config", "--project", project)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [
        "attachment_hosts",
        "files.example.com,",
        "img.example.com",
        'EMAIL["attachment_hosts"]',
        "in",
        "settings",
    ] in (lines)
    assert ["host", "localhost", "default"] in lines
    assert ["In", "a", "request", "deferred"] in lines
    assert "\x1b" not in done.stdout


def test_wrong_settings_are_named(cli: Cli, project: Path) -> None:
    configure(project, port=0)
    done = cli.run("email", "config", "--project", project)
    assert done.returncode == 1
    assert 'EMAIL["port"]' in done.stderr
    assert "Traceback" not in done.stderr
