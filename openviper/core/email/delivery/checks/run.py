"""Run all checks and yield their results in order; independent checks run at the same time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from openviper.core.email.backends import MemoryBackend, NullBackend, SMTPBackend, get_backend
from openviper.core.email.delivery.checks.backend import check_backend, has_check
from openviper.core.email.delivery.checks.dkim import check_dkim
from openviper.core.email.delivery.checks.domain import check_domain
from openviper.core.email.delivery.checks.journal import check_journal
from openviper.core.email.delivery.checks.outbox import check_outbox
from openviper.core.email.delivery.checks.queue import check_keys, check_queue
from openviper.core.email.delivery.checks.rate import check_rate
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.server import SERVER_CHECKS, check_server
from openviper.core.email.delivery.checks.unsubscribe import check_unsubscribe
from openviper.core.email.delivery.redirect import describe_redirect
from openviper.core.email.settings import DEFAULT_MAILER, EmailSettings, settings_origin

__all__ = ["check_results"]

_OURS = "openviper.core.email.backends"


async def check_results(
    settings: EmailSettings, sender: str | None, limit: float, *, module: str | None, mailer: str = DEFAULT_MAILER
) -> AsyncIterator[CheckResult]:
    """Yield the result of each check, within ``limit`` seconds.

    ``settings`` are those of ``mailer``. ``sender`` replaces the default sender. ``module`` is the settings module,
    None without one.

    Raises:
        ImproperlyConfigured: the settings are wrong; raised before the first result.
    """
    async for result in _results(settings, sender, limit, module, mailer):
        yield replace(result, found=settings.name_paths(result.found), remedy=settings.name_paths(result.remedy))


async def _results(
    settings: EmailSettings, sender: str | None, limit: float, module: str | None, mailer: str
) -> AsyncIterator[CheckResult]:
    deadline = asyncio.get_running_loop().time() + limit
    sender = sender or settings.default_sender
    backend = get_backend(settings=settings)
    queue_settings = None if isinstance(backend, MemoryBackend | NullBackend) else settings
    queue = asyncio.create_task(check_queue(queue_settings, mailer, deadline))
    outbox = asyncio.create_task(check_outbox(settings, deadline))
    journal = asyncio.create_task(check_journal(settings, deadline))
    domain = asyncio.create_task(check_domain(settings, sender, deadline))
    redirect = describe_redirect(settings)
    yield CheckResult.ok(
        "settings", f"{backend.describe()}{', ' if redirect else ''}{redirect}; {_origin(module, mailer)}"
    )
    own = not type(backend).__module__.startswith(f"{_OURS}.")
    if isinstance(backend, SMTPBackend):
        async for result in check_server(settings, sender, deadline):
            yield result
        if (rate := await check_rate(settings, deadline)) is not None:
            yield rate
    elif not own:
        for check in SERVER_CHECKS:
            yield CheckResult.skipped(check, f"{backend.describe()} uses no mail server")
    if own and (has_check(backend) or not isinstance(backend, SMTPBackend)):
        yield await check_backend(backend, deadline)
    for result in (*await queue, *await outbox, *await journal, check_keys(queue_settings), *await domain):
        yield result
    async for result in check_dkim(settings, deadline):
        yield result
    async for result in check_unsubscribe(settings, deadline):
        yield result


def _origin(module: str | None, mailer: str) -> str:
    variables = sum("(environment)" in place for place in EmailSettings.sources(mailer).values())
    if module is None and not variables:
        return f"from the defaults: {settings_origin()}"
    more = f" and {variables} environment variables" if variables else ""
    return f"from {module or 'the defaults'}{more}"
