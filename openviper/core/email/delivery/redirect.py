"""Redirect mail to addresses of yours, as staging needs it: the envelope changes where mail leaves, the rest stays."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from openviper.core.email.errors import DeliveryError, Refusal
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.model import MUST_REDIRECT
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.unsubscribe import disarm_links
from openviper.core.email.settings import EmailSettings

__all__ = ["Redirect", "Send", "check_redirected", "describe_redirect"]

_HEADER = "X-Original-Recipients"
# Beginnings of header names, in lower case: a tester must not unsubscribe a customer, and the copy has its own header.
_LEFT_OUT = ("list-unsubscribe", _HEADER.lower())

Send = Callable[[OutgoingMessage], Awaitable[DeliveryReport]]


def describe_redirect(settings: EmailSettings) -> str:
    """Return where ``redirect_to`` sends mail, for people; "" if nothing is redirected."""
    if not settings.redirect_to:
        return ""
    kept = f", except mail for {', '.join(settings.redirect_except)}" if settings.redirect_except else ""
    return f"redirected to {', '.join(settings.redirect_to)}{kept}"


class Redirect:
    """Sends one copy of a message to the addresses of ``redirect_to``, in place of all its recipients.

    Recipients in ``exceptions`` (addresses, and domains) get the message itself, in an envelope of their own.
    """

    def __init__(
        self, addresses: Sequence[str], *, exceptions: Sequence[str], show_bcc: bool, max_message_bytes: int
    ) -> None:
        self._addresses = tuple(addresses)
        self._exceptions = frozenset(each.lower() for each in exceptions)
        self._show_bcc = show_bcc
        self._max_message_bytes = max_message_bytes

    @classmethod
    def from_settings(cls, settings: EmailSettings) -> Self | None:
        """Return what the settings ask for; None without ``redirect_to``."""
        if not settings.redirect_to:
            return None
        return cls(
            settings.redirect_to,
            exceptions=settings.redirect_except,
            show_bcc=settings.redirect_bcc,
            # The copy has one header more than what was accepted.
            max_message_bytes=settings.max_message_bytes + 2**20,
        )

    def split(self, message: OutgoingMessage) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the recipients who get the message itself, and those whose copy is redirected."""
        kept = tuple([address for address in message.envelope.recipients if self._is_exception(address)])
        return kept, tuple([address for address in message.envelope.recipients if address not in kept])

    async def send(self, message: OutgoingMessage, send: Send) -> DeliveryReport:
        """Send ``message`` in up to two envelopes, and report by the original recipients.

        Raises:
            DeliveryError: nobody received anything.
        """
        kept, redirected = self.split(message)
        outcomes: list[tuple[tuple[str, ...], DeliveryReport | Exception]] = []
        if kept:
            outcomes.append((kept, await _attempt(send, message.for_recipients(kept))))
        if redirected:
            outcome = await _attempt(send, await self.copy(message, redirected))
            if isinstance(outcome, DeliveryReport):
                outcome = DeliveryReport(redirected, response=outcome.response, via=outcome.via, dsn=outcome.dsn)
            elif isinstance(outcome, DeliveryError):
                outcome.refused = {}  # by addresses that the message does not know
            outcomes.append((redirected, outcome))
        return _combine(outcomes)

    async def copy(self, message: OutgoingMessage, redirected: Sequence[str]) -> OutgoingMessage:
        """Return the copy for ``redirect_to``: its header says for whom it was, and it unsubscribes nobody."""
        prepared = message.prepared
        shown = [*prepared.to, *prepared.cc, *(prepared.bcc if self._show_bcc else ())]
        names = [each.addr_spec for each in dict.fromkeys(shown) if each.addr_spec in redirected]
        headers = [pair for pair in prepared.headers if not pair[0].lower().startswith(_LEFT_OUT)]
        headers.append((_HEADER, ", ".join(names) or "(Bcc only)"))
        prepared = prepared._replace(
            headers=tuple(headers), text=disarm_links(prepared.text), html=disarm_links(prepared.html)
        )
        serialised = await serialise_message(prepared, max_message_bytes=self._max_message_bytes)
        return serialised.for_recipients(self._addresses)

    def describe(self, redirected: Sequence[str]) -> str:
        """Say where the copy goes, and for whom it was."""
        return f"to {', '.join(self._addresses)}, was for {', '.join(redirected)}"

    def _is_exception(self, address: str) -> bool:
        key = address.lower()
        return key in self._exceptions or key.rpartition("@")[2] in self._exceptions


def check_redirected(message: OutgoingMessage) -> None:
    """Refuse a message that was accepted under ``redirect_to``, where nothing redirects.

    Raises:
        DeliveryError: it is one; temporary.
    """
    if MUST_REDIRECT in message.prepared.must:
        text = (
            'the message was accepted under EMAIL["redirect_to"], and this process has no such setting; '
            "set it here as well, or purge the message"
        )
        raise DeliveryError(text, temporary=True, summary=text)


async def _attempt(send: Send, message: OutgoingMessage) -> DeliveryReport | Exception:
    try:
        return await send(message)
    except Exception as error:  # noqa: BLE001 - the other envelope is sent all the same
        return error


def _combine(outcomes: Sequence[tuple[tuple[str, ...], DeliveryReport | Exception]]) -> DeliveryReport:
    if len(outcomes) == 1:
        outcome = outcomes[0][1]
        if isinstance(outcome, DeliveryReport):
            return outcome
        raise outcome
    accepted: list[str] = []
    refused: dict[str, Refusal] = {}
    response, via, dsn = "", None, None
    failure: Exception | None = None
    for recipients, outcome in outcomes:
        if isinstance(outcome, DeliveryReport):
            accepted += outcome.accepted
            refused.update(outcome.refused)
            response, via, dsn = outcome.response, outcome.via, outcome.dsn
            continue
        if failure is None or (isinstance(outcome, DeliveryError) and outcome.uncertain):
            failure = outcome
        refused.update(_refusals(recipients, outcome))
    if accepted:
        return DeliveryReport(tuple(accepted), refused, response, via=via, dsn=dsn)
    assert failure is not None, "both envelopes failed"
    if isinstance(failure, DeliveryError):
        failure.refused = refused
    raise failure


def _refusals(recipients: Sequence[str], error: Exception) -> dict[str, Refusal]:
    if not isinstance(error, DeliveryError):
        return dict.fromkeys(recipients, Refusal(451, type(error).__name__))
    code = error.code or (451 if error.temporary else 554)
    return error.refused or dict.fromkeys(recipients, Refusal(code, str(error), error.uncertain))
