"""Stores of idempotency keys: each of them keeps the same promises."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete
from support.postgres import postgres_url

from openviper import db
from openviper.conf import override
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.keys import KEY_LEASE, KeyClaim, KeyRecord, KeyStore, ProcessKeyStore, read_key
from openviper.core.email.queue.outbox_keys import OutboxKeyStore
from openviper.core.email.queue.service import RedisKeyStore
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.tables import key_table

__all__ = ["postgres_url"]

SHORT = 0.3  # seconds of a lease that a test waits for


@pytest.fixture
def lease() -> float:
    return KEY_LEASE


@pytest.fixture(params=["process", "redis", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, lease: float, tmp_path: Path) -> Iterator[KeyStore]:
    if request.param == "process":
        yield ProcessKeyStore(lease=lease)
        return
    if request.param in ("sqlite", "postgresql"):
        url = f"sqlite:///{tmp_path / 'shop.sqlite3'}"
        if request.param == "postgresql":
            url = request.getfixturevalue("postgres_url")
        with override(DATABASE_URL=url):
            asyncio.run(_empty_tables())
            yield OutboxKeyStore("database", lease=lease)
        return
    server = request.getfixturevalue("redis_server")
    with override(TASKS=server.tasks()):
        service = queue_service()
        assert service is not None
        yield RedisKeyStore(service, lease=lease)
        close_queue()


async def _empty_tables() -> None:
    engine = await db.engine()
    await create_outbox_tables(engine)
    async with engine.begin() as connection:
        await connection.execute(delete(key_table))


def claim(owner: str, *, name: str = "order-7", sending: bool = False, ttl: float = 60.0) -> KeyClaim:
    return KeyClaim(name, "print", f"<{owner}@example.com>", owner, ttl, sending)


async def test_second_claim_finds_the_first_in_flight(store: KeyStore) -> None:
    assert await store.claim(claim("a")) is None
    assert await store.claim(claim("b")) == KeyRecord("in_flight", "print", "<a@example.com>")
    assert await store.claim(claim("b", name="order-8")) is None


async def test_one_of_many_concurrent_claims_gets_the_key(store: KeyStore) -> None:
    found = await asyncio.gather(*(store.claim(claim(f"owner{number}")) for number in range(50)))
    assert found.count(None) == 1


async def test_finished_key_has_the_receipt(store: KeyStore) -> None:
    await store.claim(claim("a"))
    await store.finish(claim("a"), '{"mode": "inline"}')
    assert await store.claim(claim("b")) == KeyRecord("done", "print", "<a@example.com>", '{"mode": "inline"}')
    await store.release(claim("a"))
    assert await store.claim(claim("b")) is not None, "what is done is not released"


async def test_finished_key_is_free_after_its_ttl(store: KeyStore) -> None:
    await store.claim(claim("a", ttl=SHORT))
    await store.finish(claim("a", ttl=SHORT), "{}")
    await asyncio.sleep(SHORT * 2)
    assert await store.claim(claim("b")) is None


async def test_released_key_is_free(store: KeyStore) -> None:
    await store.claim(claim("a"))
    await store.release(claim("a"))
    assert await store.claim(claim("b")) is None


async def test_only_its_owner_releases_renews_or_finishes_a_claim(store: KeyStore) -> None:
    await store.claim(claim("a"))
    await store.release(claim("b"))
    await store.finish(claim("b"), "{}")
    assert await store.renew([claim("b"), claim("a")]) == [False, True]
    assert await store.claim(claim("c")) == KeyRecord("in_flight", "print", "<a@example.com>")


async def test_receipt_of_a_claim_that_has_expired_is_recorded_all_the_same(store: KeyStore) -> None:
    await store.finish(claim("a"), "{}")
    assert await store.claim(claim("b")) == KeyRecord("done", "print", "<a@example.com>", "{}")


@pytest.mark.parametrize("lease", [SHORT])
async def test_expired_lease_frees_the_key(store: KeyStore) -> None:
    await store.claim(claim("a"))
    await asyncio.sleep(SHORT * 2)
    assert await store.claim(claim("b")) is None
    assert await store.renew([claim("a")]) == [False]


@pytest.mark.parametrize("lease", [SHORT])
async def test_renewed_lease_holds(store: KeyStore) -> None:
    await store.claim(claim("a"))
    for _ in range(3):
        await asyncio.sleep(SHORT / 2)
        assert await store.renew([claim("a")]) == [True]
    assert await store.claim(claim("b")) is not None


@pytest.mark.parametrize("lease", [SHORT])
async def test_claim_that_was_sending_is_abandoned_not_free(store: KeyStore) -> None:
    """Its process may have died after the server had taken the message."""
    await store.claim(claim("a"))
    await store.renew([claim("a", sending=True)])
    await asyncio.sleep(SHORT * 2)
    assert await store.claim(claim("b")) == KeyRecord("abandoned", "print", "<a@example.com>")
    assert await store.claim(claim("c")) == KeyRecord("abandoned", "print", "<a@example.com>")


@pytest.mark.parametrize(
    ("must", "key"),
    [
        ({}, None),
        ({"key": {"name": "order-7", "fingerprint": "ab"}}, ("order-7", "ab")),
        ({"key": "order-7"}, None),
        ({"key": {"name": "order-7"}}, None),
        ({"key": {"name": 7, "fingerprint": "ab"}}, None),
    ],
)
def test_key_is_read_from_what_a_message_must_have(must: dict[str, object], key: tuple[str, str] | None) -> None:
    assert read_key(must) == key
