"""Keep idempotency keys in the database outbox, where there is no Redis: all processes share them there."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue.keys import KEY_LEASE, KeyClaim, KeyRecord
from openviper.core.email.queue.outbox_engine import describe_outbox_failure, outbox_engine
from openviper.db.transaction import current_record
from openviper.exceptions import OpenViperError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from openviper.db.outbox.keys import KeyRows

__all__ = ["OutboxKeyStore"]

_LIMIT = 5.0  # seconds for the database to answer

T = TypeVar("T")


class OutboxKeyStore:
    """The keys in the database that ``EMAIL["outbox"]`` names; see ``KeyStore``."""

    shared = True

    def __init__(self, outbox: str, *, lease: float = KEY_LEASE) -> None:
        self._outbox = outbox
        self._lease = lease

    def describe(self) -> str:
        """Return where keys are kept."""
        return "the database outbox"

    async def claim(self, claim: KeyClaim) -> KeyRecord | None:
        """Claim a key for the time of a lease; return the record of the send that has it, or None.

        Raises:
            QueueUnavailable: the database does not answer.
        """
        values = {"key": claim.name, "fingerprint": claim.fingerprint, "message_id": claim.message_id}
        values |= {"owner": claim.owner}
        found = await self._run(
            lambda rows: rows.claim({**values, "sending": claim.sending}, lease=self._lease, expires=self._kept(claim))
        )
        if found is None:
            return None
        if found.result is not None:
            return KeyRecord("done", found.fingerprint, found.message_id, found.result)
        return KeyRecord("in_flight" if found.leased else "abandoned", found.fingerprint, found.message_id)

    async def renew(self, claims: Sequence[KeyClaim]) -> list[bool]:
        """Begin the leases anew; return for each claim whether its owner still has the key."""

        async def renew_all(rows: "KeyRows") -> list[bool]:
            return [
                await rows.renew(
                    claim.name, claim.owner, sending=claim.sending, lease=self._lease, expires=self._kept(claim)
                )
                for claim in claims
            ]

        return await self._run(renew_all)

    async def finish(self, claim: KeyClaim, result: str) -> None:
        """Record the receipt for ``claim.ttl`` seconds, unless another send has the key by now."""
        values = {"key": claim.name, "fingerprint": claim.fingerprint, "message_id": claim.message_id}
        values |= {"owner": claim.owner, "result": result}
        await self._run(lambda rows: rows.finish({**values, "sending": False}, expires=claim.ttl))

    async def release(self, claim: KeyClaim) -> None:
        """Free the key, unless another send has it by now or it is done."""
        await self._run(lambda rows: rows.release(claim.name, claim.owner))

    def _kept(self, claim: KeyClaim) -> float:
        """Return for how many seconds the claim keeps its key from others."""
        return self._lease + claim.ttl if claim.sending else self._lease

    async def _run(self, work: "Callable[[KeyRows], Awaitable[T]]") -> T:
        engine = await outbox_engine(self._outbox)
        rows = await self._rows(engine)
        try:
            async with asyncio.timeout(_LIMIT):
                return await work(rows)
        except OpenViperError:
            raise
        except Exception as error:  # noqa: BLE001 - of any driver
            raise QueueUnavailable(await describe_outbox_failure(error, engine)) from None

    async def _rows(self, engine: "AsyncEngine") -> "KeyRows":
        if engine.dialect.name == "sqlite" and current_record() is not None:
            # It would wait for the transaction that waits for it.
            raise QueueUnavailable(
                "SQLite allows one writing transaction at a time, and one is open here; send a message with a key "
                "after it has ended, or leave out background=False, so that the message is held"
            )
        return (await asyncio.to_thread(_key_rows))(engine)


def _key_rows() -> "type[KeyRows]":
    from openviper.db.outbox.keys import KeyRows  # in a thread at first: it imports SQLAlchemy

    return KeyRows
