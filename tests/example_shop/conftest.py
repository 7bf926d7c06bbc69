"""The shop on an empty database: SQLite, and the same on PostgreSQL."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from support.postgres import postgres_url
from support.shopping import Shop

from openviper.conf import override
from openviper.core.email.backends.memory import sent

__all__ = ["postgres_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shop.sqlite3'}"
        return
    server: str = request.getfixturevalue("postgres_url").replace("postgresql+asyncpg:", "postgresql:")
    name = f"shop_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        # Without sslmode asyncpg looks for certificates in the home folder, blocking the loop.
        yield f"{server.rpartition('/')[0]}/{name}?sslmode=disable"
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture
def shop(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The shop with its own settings, on an empty database."""
    monkeypatch.setenv("OPENVIPER_SETTINGS_MODULE", "example_shop.shop.settings")
    sent.clear()
    with override(DATABASE_URL=database_url, SHOP_URL="https://shop.example"):
        yield Shop()
    sent.clear()
