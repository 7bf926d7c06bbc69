"""Check that the journal's database answers and has its table."""

import asyncio
import time

from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import remaining
from openviper.core.email.delivery.journal import JOURNAL_REMEDY, JOURNAL_SETTING
from openviper.core.email.queue.outbox_engine import own_outbox_engine
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import OpenViperError
from openviper.text import counted

__all__ = ["check_journal"]


async def check_journal(settings: EmailSettings, deadline: float) -> list[CheckResult]:
    """Check the journal until ``deadline`` (loop time); no results without ``EMAIL["journal"]``."""
    if not settings.journal:
        return []
    try:
        async with asyncio.timeout(limit := remaining(deadline)):
            return [await _ask(settings, limit)]
    except OpenViperError as error:
        return [CheckResult.failed("journal", str(error), "correct the setting")]
    except Exception as error:  # noqa: BLE001 - of any driver, whose text may hold the password
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        text = f"its database does not answer: {reason}; mail is still sent, but its answers are not recorded"
        return [CheckResult.failed("journal", text, "start it, or correct DATABASE_URL")]


async def _ask(settings: EmailSettings, limit: float) -> CheckResult:
    from openviper.db.journal import JournalStore, missing_columns  # with the setting only

    database = settings.outbox or "database"
    async with own_outbox_engine(database, setting=JOURNAL_SETTING, lock_seconds=limit) as engine:
        address = engine.url.render_as_string()
        if missing := await missing_columns(engine):
            text = f"{address} lacks {', '.join(missing)}: mail is still sent, but its answers are not recorded"
            return CheckResult.failed("journal", text, JOURNAL_REMEDY)
        found = await JournalStore(engine).stats()
    newest = "none yet" if found.newest is None else f"the newest {max(0.0, time.time() - found.newest):.0f} s ago"
    return CheckResult.ok(
        "journal", f"{address}: {counted(found.rows, 'answer')}, {newest}; kept {settings.journal_keep / 86400:g} days"
    )
