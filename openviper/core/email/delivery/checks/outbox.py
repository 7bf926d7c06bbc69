"""Check the database outbox: its tables, and the relays that deliver what it holds."""

import asyncio
from typing import NamedTuple

from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import remaining
from openviper.core.email.queue.outbox_engine import OUTBOX_REMEDY, own_outbox_engine
from openviper.core.email.settings import EmailSettings
from openviper.db.outbox.rows import OutboxStats
from openviper.exceptions import OpenViperError

__all__ = ["check_outbox"]

_RELAY = "start one: your application runs one itself, and `viperctl email relay` runs one separately"


class _Found(NamedTuple):
    """``missing``: tables and columns; with any of them, or without an answer, the rest is unknown."""

    address: str
    missing: list[str]
    identity: str | None = None
    stats: OutboxStats | None = None
    relays: int = 0


async def check_outbox(settings: EmailSettings, deadline: float) -> list[CheckResult]:
    """Check tables and relays until ``deadline`` (loop time); no results without ``EMAIL["outbox"]``."""
    if settings.outbox is None:
        return []
    try:
        async with asyncio.timeout(limit := remaining(deadline)):
            found = await _ask(settings.outbox, limit)
    except OpenViperError as error:
        return [CheckResult.failed("outbox", str(error), "correct the setting"), _unreached()]
    except Exception as error:  # noqa: BLE001 - of any driver, whose text may hold the password
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        found_text = f"the database of the outbox ({settings.outbox}) does not answer: {reason}"
        return [CheckResult.failed("outbox", found_text, "start it, or correct DATABASE_URL"), _unreached()]
    if found.stats is None:
        text = f"{found.address} lacks {', '.join(found.missing)}: transactions with mail fail"
        return [CheckResult.failed("outbox", text, OUTBOX_REMEDY), _unreached()]
    identity = "no id yet" if found.identity is None else f"id {found.identity[:8]}"
    stats = found.stats
    counts = f"{stats.waiting} waiting, {stats.in_hand} leased, {stats.later} later, {stats.failed} failed"
    return [CheckResult.ok("outbox", f"{found.address} ({identity}): {counts}"), _relay(found.relays, found.stats)]


def _relay(relays: int, stats: OutboxStats) -> CheckResult:
    if not relays and (stats.waiting or stats.in_hand):
        return CheckResult.failed("relay", "mail waits in the outbox, and no relay runs", _RELAY)
    if not relays:
        return CheckResult.warning("relay", "no relay runs on this database", _RELAY)
    return CheckResult.ok("relay", f"relays: {relays}")


def _unreached() -> CheckResult:
    return CheckResult.skipped("relay", "not reached")


async def _ask(outbox: str, limit: float) -> _Found:
    from openviper.db.outbox.store import OutboxStore  # with the setting only
    from openviper.db.outbox.tables import missing_tables

    async with own_outbox_engine(outbox, lock_seconds=limit) as engine:
        address = engine.url.render_as_string()
        if missing := await missing_tables(engine):
            return _Found(address, missing)
        store = OutboxStore(engine)
        return _Found(address, [], await store.database_id(), await store.stats(), await store.relays())
