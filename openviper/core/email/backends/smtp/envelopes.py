"""Split a message into as many envelopes as its recipients need, and combine their outcomes in one report."""

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from openviper.core.email.backends.smtp.commands import rcpt_to
from openviper.core.email.backends.smtp.errors import TooManyRecipients
from openviper.core.email.backends.smtp.replies import exceeds_recipient_limit
from openviper.core.email.errors import DeliveryError, RecipientsRefused, Refusal
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.text import counted

__all__ = ["Send", "send_in_envelopes"]

logger = logging.getLogger("openviper.email")

Send = Callable[[OutgoingMessage], Awaitable[DeliveryReport]]


async def send_in_envelopes(
    message: OutgoingMessage, send: Send, *, max_recipients: int, allow_partial: bool = True
) -> DeliveryReport:
    """Send ``message`` to all its recipients, at most ``max_recipients`` in a transaction, or as the server announces.

    Recipients that the server refuses because the transaction has too many (452, 552) get a further one, as long as
    each transaction reaches a recipient. If a transaction fails after an earlier one has succeeded, its recipients are
    in ``refused``: with the server's reply if there is one, else with 451 (worth retrying) or 554 and the reason as the
    text. If the server may have accepted that transaction, they are ``uncertain``: sending to them again may deliver
    twice. ``allow_partial`` is the setting, which ``send`` obeys: if it is off, those who share an envelope with a
    recipient refused permanently are refused permanently as well, so that no retry leaves that one out.

    Raises:
        InvalidAddress: a recipient is not allowed in a command; nothing was sent.
        DeliveryError: no recipient is known to have it; ``refused`` may distinguish those who may have it.
    """
    recipients = message.envelope.recipients
    if len(recipients) <= max_recipients:
        try:
            report = await send(message)
        except TooManyRecipients as error:
            max_recipients = error.limit
        except RecipientsRefused as error:
            envelopes = _Envelopes(message, send, allow_partial=allow_partial)
            if not envelopes.split(recipients, error):
                raise
            return await envelopes.send_all()
        else:
            if not report.refused:
                return report
            envelopes = _Envelopes(message, send, allow_partial=allow_partial)
            envelopes.record(recipients, report)
            return await envelopes.send_all()
    for recipient in recipients:
        rcpt_to(recipient)  # an invalid one must be found before the first envelope is sent
    envelopes = _Envelopes(message, send, allow_partial=allow_partial)
    envelopes.add(recipients, max_recipients)
    return await envelopes.send_all()


class _Envelopes:
    """Envelopes of one message that are waiting, and the outcome of those sent."""

    def __init__(self, message: OutgoingMessage, send: Send, *, allow_partial: bool) -> None:
        self._message = message
        self._allow_partial = allow_partial
        self._send = send
        self.waiting: deque[tuple[str, ...]] = deque()
        self._accepted: list[str] = []
        self._refused: dict[str, Refusal] = {}
        self._response = ""
        self._dsn: bool | None = None
        self._protocol: str | None = None

    def add(self, recipients: tuple[str, ...], max_recipients: int) -> None:
        """Let ``recipients`` wait in envelopes of at most ``max_recipients``, before those that wait already."""
        parts = [recipients[at : at + max_recipients] for at in range(0, len(recipients), max_recipients)]
        self.waiting.extendleft(reversed(parts))

    async def send_all(self) -> DeliveryReport:
        failure: DeliveryError | None = None
        while self.waiting:
            recipients = self.waiting.popleft()
            try:
                self.record(recipients, await self._send(self._message.for_recipients(recipients)))
            except TooManyRecipients as error:
                self.add(recipients, error.limit)
            except RecipientsRefused as error:
                self._protocol = error.protocol or self._protocol
                if not self.split(recipients, error):
                    self._record_refused(error)
            except DeliveryError as error:
                self._protocol = error.protocol or self._protocol
                # A server that failed, or refused the content, would fail the next envelope too.
                failure = error
                self._record_failure(error, recipients)
        if not self._accepted:
            if failure is not None and failure.uncertain and not all(each.uncertain for each in self._refused.values()):
                failure.refused = self._refused
            if failure is None:
                failure = RecipientsRefused(
                    f"{counted(len(self._refused), 'recipient')} refused, nothing was sent: {_codes(self._refused)}",
                    accepted=(),
                    refused=self._refused,
                )
                failure.protocol = self._protocol
            raise failure
        if self._refused:
            total = len(self._message.envelope.recipients)
            uncertain = sum(refusal.uncertain for refusal in self._refused.values())
            logger.warning(
                "message %s: %d of %d recipients refused (%s)%s",
                self._message.message_id,
                len(self._refused),
                total,
                _codes(self._refused),
                f"; {uncertain} of them may have received it" if uncertain else "",
            )
        return DeliveryReport(
            tuple(self._accepted), self._refused, self._response, dsn=self._dsn, protocol=self._protocol
        )

    def record(self, recipients: Sequence[str], report: DeliveryReport) -> None:
        """Add the outcome of one transaction; those above the server's limit wait for a further one."""
        self._accepted += report.accepted
        self._response, self._dsn = report.response, report.dsn
        self._protocol = report.protocol or self._protocol
        later = _above_limit(recipients, report.refused)
        if later:
            self.waiting.appendleft(later)
        self._refused.update((key, value) for key, value in report.refused.items() if key not in later)

    def split(self, recipients: Sequence[str], error: RecipientsRefused) -> bool:
        """Let a transaction that was withheld only because of its number of recipients wait as two; True if it was."""
        later = _above_limit(recipients, error.refused)
        if not later or len(later) < len(error.refused):
            return False
        self.waiting.extendleft((later, error.accepted))
        return True

    def _record_refused(self, error: RecipientsRefused) -> None:
        self._refused.update(error.refused)
        others = "not sent, because another recipient of its envelope was refused"
        if self._allow_partial or all(refusal.temporary for refusal in error.refused.values()):
            self._refused.update(dict.fromkeys(error.accepted, Refusal(451, others)))
            return
        self._refused.update(dict.fromkeys(error.accepted, Refusal(554, others)))
        for address, refusal in error.refused.items():
            if refusal.temporary:
                self._refused[address] = Refusal(554, f"{others}; its own reply: {refusal}")

    def _record_failure(self, error: DeliveryError, recipients: tuple[str, ...]) -> None:
        refusal = Refusal(error.code or (451 if error.temporary else 554), str(error), error.uncertain)
        self._refused.update(error.refused or dict.fromkeys(recipients, refusal))
        if error.uncertain:
            refusal = Refusal(451, "not sent, because the connection failed in another envelope of the message")
        for envelope in self.waiting:
            self._refused.update(dict.fromkeys(envelope, refusal))
        self.waiting.clear()


def _above_limit(recipients: Sequence[str], refused: Mapping[str, Refusal]) -> tuple[str, ...]:
    """Return those of ``recipients`` that may have been refused because others had been accepted before them."""
    if not any(map(exceeds_recipient_limit, refused.values())):
        return ()
    accepted = False
    later = []
    for address in recipients:
        refusal = refused.get(address)
        if refusal is None:
            accepted = True
        elif accepted and exceeds_recipient_limit(refusal):
            later.append(address)
    return tuple(later)


def _codes(refused: dict[str, Refusal]) -> str:
    counts = Counter(refusal.code for refusal in refused.values())
    return ", ".join(f"{count} x {code}" for code, count in sorted(counts.items()))
