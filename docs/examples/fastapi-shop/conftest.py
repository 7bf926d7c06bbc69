import os
from collections.abc import AsyncIterator, Iterator

os.environ["OPENVIPER_SETTINGS_MODULE"] = "settings"
os.environ["DATABASE_URL"] = "sqlite+aiosqlite:///test.sqlite3"
# Set in a shell, these would change the tests.
for name in ("DEBUG", "BROKER_URL", "PUBLIC_URL"):
    os.environ.pop(name, None)

import httpx
import pytest
from app import app
from asgi_lifespan import LifespanManager
from database import Base, engine
from openviper.conf import override, settings


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def queue() -> Iterator[None]:
    with override(TASKS={"broker": "stub"}):
        yield


@pytest.fixture
def staging() -> Iterator[None]:
    with override(
        EMAIL={**settings.EMAIL, "redirect_to": ["team@shop.example"]}
    ):
        yield


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    transport = httpx.ASGITransport(app)
    async with (
        LifespanManager(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost"
        ) as client,
    ):
        yield client
