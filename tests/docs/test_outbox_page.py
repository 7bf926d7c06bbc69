"""The project of docs/outbox.md, set up with Alembic as its reader does, on both databases."""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import httpx
import pytest
from support.documents import ROOT
from support.patience import PATIENCE
from support.postgres import postgres_url
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn

__all__ = ["postgres_url"]

EXAMPLE = ROOT / "docs" / "examples" / "outbox"
POSTGRES_ONLY = ROOT / "docs" / "examples" / "howto" / "postgres"


def own_database(server: str) -> str:
    """Create a database on the server, and return its URL."""
    name = f"page_{secrets.token_hex(6)}"

    async def create() -> None:
        connection = await asyncpg.connect(server.replace("+asyncpg", ""))
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(create())
    return f"{server.rpartition('/')[0]}/{name}"


def set_up(folder: Path, environment: dict[str, str]) -> str:
    """Follow the page up to ``outbox check``, and return what the last two commands print."""
    for name in ("settings.py", "database.py", "app.py"):
        shutil.copy(EXAMPLE / name, folder)
    programs = Path(sys.executable).parent
    alembic: list[str | Path] = [programs / "alembic"]
    commands: list[list[str | Path]] = [
        [*alembic, "init", "migrations"],
        ["cp", EXAMPLE / "env.py", "migrations/env.py"],
        [*alembic, "revision", "--autogenerate", "-m", "orders and outbox"],
        [*alembic, "upgrade", "head"],
        [*alembic, "check"],
        [programs / "viperctl", "email", "outbox", "check"],
    ]
    printed = ""
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed += done.stdout + done.stderr
    return printed


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_project_of_the_page_migrates_and_delivers_what_a_killed_process_left(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sqlite = f"sqlite:///{tmp_path}/shop.sqlite3"
    url = sqlite if database == "sqlite" else own_database(request.getfixturevalue("postgres_url"))
    environment = {"DATABASE_URL": url, "OPENVIPER_SETTINGS_MODULE": "settings", "EMAIL_TIMEOUT": str(PATIENCE)}
    printed = set_up(tmp_path, environment)
    assert "No new upgrade operations detected" in printed
    assert "0 waiting, 0 leased, 0 later, 0 failed" in printed
    with SmtpServer() as smtp:
        environment |= {"EMAIL_HOST": smtp.host, "EMAIL_PORT": str(smtp.port)}
        smtp.hold("EHLO")  # so that nothing can have been sent when the process dies
        with Uvicorn("app:app", tmp_path, environment) as server:
            answer = httpx.post(f"{server.url}/orders", json={"email": "alice@example.com"}, timeout=PATIENCE)
            assert answer.status_code == 201, "".join(server.log)
            assert answer.json() == {"number": 1}
            server.process.kill()
        assert smtp.messages == []
        smtp.behave()
        end_leases(tmp_path, environment)
        with Uvicorn("app:app", tmp_path, environment):
            (message,) = smtp.wait_for(1)
    assert (message.recipients, message.parse()["Subject"]) == (["alice@example.com"], "Order 1")


def test_with_postgresql_only_an_order_is_mailed_and_later_mail_waits_in_its_table(
    tmp_path: Path, postgres_url: str
) -> None:
    """docs/howto-postgres.md"""
    shutil.copytree(POSTGRES_ONLY, tmp_path, dirs_exist_ok=True)
    environment = {"DATABASE_URL": own_database(postgres_url), "OPENVIPER_SETTINGS_MODULE": "settings"}
    with SmtpServer() as smtp:
        environment |= {"EMAIL_HOST": smtp.host, "EMAIL_PORT": str(smtp.port), "EMAIL_TIMEOUT": str(PATIENCE)}
        with Uvicorn("app:app", tmp_path, environment) as server:
            httpx.post(f"{server.url}/orders", json={"email": "alice@example.com"}, timeout=PATIENCE).raise_for_status()
            (message,) = smtp.wait_for(1)
    assert (message.recipients, message.parse()["Subject"]) == (["alice@example.com"], "Order 1")
    check = subprocess.run(
        [Path(sys.executable).with_name("viperctl"), "email", "outbox", "check"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "0 waiting, 0 leased, 1 later, 0 failed" in check.stdout, check.stdout + check.stderr


END_LEASES = """
import asyncio
from openviper.db import engine
from sqlalchemy import text

async def main():
    async with (await engine()).begin() as connection:
        done = await connection.execute(text("UPDATE email_outbox SET lease = lease - 60"))
        assert done.rowcount == 1, "the killed process has left no row"

asyncio.run(main())
"""


def end_leases(folder: Path, environment: dict[str, str]) -> None:
    """Let the minute pass for which a killed process has its rows."""
    subprocess.run(
        [sys.executable, "-c", END_LEASES],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(folder)},
        check=True,
        timeout=PATIENCE,
    )
