"""Check the mail server: TLS, extensions, login, and whether it accepts the sender. Sends no message."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

from openviper.core.email.addresses import parse_address
from openviper.core.email.backends.smtp.errors import certificate_error, is_greeting_error
from openviper.core.email.backends.smtp.inspection import Inspection, TlsSession
from openviper.core.email.backends.smtp.remedies import NO_GREETING, reply_remedy, tls_remedy
from openviper.core.email.delivery.checks.network import find_addresses, open_connection
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import remaining
from openviper.core.email.errors import DeliveryError, DeliveryTimeout
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.network import is_loopback
from openviper.text import counted

__all__ = ["SERVER_CHECKS", "check_server"]

SERVER_CHECKS = ("dns", "tcp", "tls", "ehlo", "auth", "sender")
_EXPIRES_SOON = 14  # days


async def check_server(settings: EmailSettings, sender: str | None, deadline: float) -> AsyncIterator[CheckResult]:
    """Yield a result for each of dns, tcp, tls, ehlo, auth and sender, until ``deadline`` (loop time)."""
    done = 0
    async for result in _check_results(settings, sender, deadline):
        done += 1
        yield result
    for check in SERVER_CHECKS[done:]:
        yield CheckResult.skipped(check, "not reached")


async def _check_results(settings: EmailSettings, sender: str | None, deadline: float) -> AsyncIterator[CheckResult]:
    """Yield results until a failure makes further checks impossible."""
    result, targets = await find_addresses(settings.host, settings.port, deadline)
    yield result
    if not targets:
        return
    result, sock = await open_connection(targets, settings.port, deadline)
    yield result
    if sock is None:
        return
    # A step that times out before the deadline gives a more precise error.
    limited = settings.model_copy(update={"timeout": min(settings.timeout, 0.8 * remaining(deadline))})
    try:
        inspection = await Inspection.create(limited, sock)
    except ImproperlyConfigured as error:
        sock.close()
        yield CheckResult.failed("tls", str(error), "correct that setting")
        return
    async with inspection:
        async for result in _Conversation(settings, inspection, deadline).check_results(sender):
            yield result


class _Conversation:
    def __init__(self, settings: EmailSettings, inspection: Inspection, deadline: float) -> None:
        self._settings = settings
        self._inspection = inspection
        self._deadline = deadline

    async def check_results(self, sender: str | None) -> AsyncIterator[CheckResult]:
        """Yield the results for tls, ehlo, auth and sender until one of them fails."""
        failure = await self._try("greeting", self._inspection.connect)
        if failure is not None:
            if self._settings.use_ssl and not is_greeting_error(failure):
                yield _bad_tls(failure, self._settings)
            else:
                yield self._tls_until_now()
                yield self._silent_or_wrong(failure)
            return
        failure = await self._try("EHLO", self._inspection.greet)
        if failure is not None:
            yield self._tls_until_now()
            yield self._silent_or_wrong(failure)
            return
        if self._settings.use_tls:
            failure = await self._try("STARTTLS", self._inspection.start_tls)
            if failure is not None:
                yield _bad_tls(failure, self._settings)
                return
        session = self._inspection.tls
        yield _clear_text(self._settings, self._inspection) if session is None else _good_tls(session)
        yield self._offers()
        failure = await self._try("AUTH", self._inspection.log_in)
        if failure is not None:
            if isinstance(failure, TimeoutError) and self._inspection.auth_refusals:
                failure = self._inspection.auth_refusals[0]  # an answer says more than the silence after it
            yield self._no_login(failure)
            return
        yield self._logged_in()
        yield await self._sender(sender)

    def _tls_until_now(self) -> CheckResult:
        session = self._inspection.tls
        if session is not None:
            return _good_tls(session)
        why = "the server closed the connection after the TLS handshake" if self._settings.use_ssl else "not reached"
        return CheckResult.skipped("tls", why)

    def _offers(self) -> CheckResult:
        offered = [f"{name} {value}".strip().upper() for name, value in self._inspection.extensions.items()]
        missing = [name.upper() for name in ("pipelining", "chunking") if name not in self._inspection.extensions]
        slower = f"; without {' and '.join(missing)} each message needs more round trips" if missing else ""
        return CheckResult.ok("ehlo", f"offers {', '.join(offered) or 'no extensions'}{slower}")

    def _logged_in(self) -> CheckResult:
        if self._settings.username is not None:
            return CheckResult.ok("auth", f"logged in as {self._settings.username}")
        if self._inspection.auth_methods:
            methods = ", ".join(self._inspection.auth_methods).upper()
            return CheckResult.ok("auth", f'no login: EMAIL["username"] is not set (the server offers {methods})')
        return CheckResult.ok("auth", 'no login: EMAIL["username"] is not set')

    async def _sender(self, sender: str | None) -> CheckResult:
        if sender is None:
            remedy = 'set EMAIL["default_sender"], or give a sender with --from'
            return CheckResult.warning("sender", "no default sender is set: each message must name its own", remedy)
        address = parse_address(sender, field="sender").addr_spec
        failure = await self._try("MAIL FROM", lambda: self._inspection.try_sender(address))
        if failure is None:
            return CheckResult.ok("sender", f"{address} is accepted (nothing was sent)")
        remedy = 'set EMAIL["default_sender"] to an address that this server accepts, or allow it on the server'
        if failure.temporary:
            remedy = "the server refuses temporarily: look at its log, and retry later"
        return CheckResult.failed("sender", str(failure), self._reply_remedy(failure) or remedy)

    def _silent_or_wrong(self, failure: DeliveryError) -> CheckResult:
        if failure.code is not None:
            remedy = self._reply_remedy(failure) or "the server rejects this client: look at its log"
        elif isinstance(failure, TimeoutError):
            remedy = (
                'check that a mail server listens there; for implicit TLS (port 465) set EMAIL["use_ssl"]; '
                "for a slow greeting use --timeout"
            )
        else:
            remedy = NO_GREETING
        return CheckResult.failed("ehlo", str(failure), remedy)

    def _no_login(self, failure: DeliveryError) -> CheckResult:
        if isinstance(failure, TimeoutError):
            remedy = "look at the server's log, or allow more time with --timeout"
        elif failure.temporary:
            remedy = "the server cannot verify the login now: retry later"
        elif failure.code is None:
            remedy = "compare the extensions in the line above, and look at the server's log"
        else:
            remedy = "the server refuses the login permanently: see its reply, and its log"
        return CheckResult.failed("auth", str(failure), self._reply_remedy(failure) or remedy)

    def _reply_remedy(self, failure: DeliveryError) -> str | None:
        return reply_remedy(failure, self._settings, self._inspection.extensions)

    async def _try(self, name: str, step: Callable[[], Awaitable[None]]) -> DeliveryError | None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await step()
        except DeliveryError as error:
            return error
        except TimeoutError:
            return DeliveryTimeout(f"{name}: the server did not answer in time", temporary=True)
        return None


def _good_tls(session: TlsSession) -> CheckResult:
    days = (session.expires - datetime.now(UTC)).days
    until = f"valid until {session.expires:%Y-%m-%d} ({counted(days, 'day')} left)"
    found = f"{session.version}, {session.cipher}; {session.subject or 'the certificate'} by {session.issuer}, {until}"
    if days < _EXPIRES_SOON:
        return CheckResult.warning("tls", found, "renew the certificate on the mail server before it expires")
    return CheckResult.ok("tls", found)


def _bad_tls(failure: DeliveryError, settings: EmailSettings) -> CheckResult:
    untrusted = certificate_error(failure)
    found = str(failure) if untrusted is None else f"the certificate is not trusted: {untrusted.verify_message}"
    return CheckResult.failed("tls", found, tls_remedy(failure, settings))


def _clear_text(settings: EmailSettings, inspection: Inspection) -> CheckResult:
    if is_loopback(settings.host):
        return CheckResult.ok("tls", "none, to this machine")
    offered = "; the server offers STARTTLS" if "starttls" in inspection.extensions else ""
    return CheckResult.warning(
        "tls", f"none: mail crosses the network unencrypted{offered}", 'set EMAIL["use_tls"] or EMAIL["use_ssl"]'
    )
