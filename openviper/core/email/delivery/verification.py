"""Find out from code whether mail can be sent: the checks of ``viperctl email check``."""

import asyncio
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from openviper.core.email.addresses import AddressLike, read_address
from openviper.core.email.delivery.current import mailer_if_open
from openviper.core.email.message import with_keyword_hints
from openviper.core.email.settings import EmailSettings, settings_module

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openviper.core.email.delivery.checks.result import CheckResult

__all__ = ["Verification", "verify"]


@dataclass(frozen=True, slots=True)
class Verification:
    """The results of all checks, in order; true if none failed. ``str()`` gives a line for each, with the remedy."""

    checks: "tuple[CheckResult, ...]"

    @property
    def failed(self) -> "tuple[CheckResult, ...]":
        """Return the results of the checks that failed."""
        return tuple([each for each in self.checks if each.status == "failed"])

    def __bool__(self) -> bool:
        return not self.failed

    def __iter__(self) -> "Iterator[CheckResult]":
        return iter(self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


@with_keyword_hints
async def verify(*, sender: AddressLike | None = None, timeout: float = 5.0) -> Verification:
    """Check settings, mail server, queue and DNS records as ``viperctl email check`` does. Sends nothing.

    The server is asked for TLS, its extensions, the login, and whether it accepts ``sender`` (None:
    ``EMAIL["default_sender"]``), over a separate connection. All checks together take at most ``timeout`` seconds. The
    result reports failed checks; no check raises.

    Raises:
        ImproperlyConfigured: the settings are wrong.
        InvalidAddress: ``sender`` is not an address.
    """
    address = None if sender is None else str(read_address(sender, field="sender"))
    mailer = mailer_if_open()
    settings = EmailSettings.from_settings() if mailer is None else mailer.settings
    # The checks need the SMTP client, whose import would block the event loop.
    checks = await asyncio.to_thread(import_module, "openviper.core.email.delivery.checks.run")
    found = [each async for each in checks.check_results(settings, address, timeout, module=settings_module())]
    return Verification(tuple(found))
