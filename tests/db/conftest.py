"""A fresh database for each test, on SQLite and on PostgreSQL."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from support.postgres import postgres_url

from openviper import conf, db

__all__ = ["postgres_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}"
        return
    server = make_url(request.getfixturevalue("postgres_url"))
    name = f"test_{secrets.token_hex(6)}"
    administration = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with administration.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.set(database=name).render_as_string(hide_password=False)
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    await administration.dispose()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[None]:
    """``DATABASE_URL`` points to an empty database for the test."""
    with conf.override(DATABASE_URL=database_url):
        yield
        await db.dispose()
