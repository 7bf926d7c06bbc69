"""One message in as many envelopes as its recipients need, and one outcome of them all."""

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable

from openviper.core.email.backends.smtp.commands import rcpt_to
from openviper.core.email.errors import DeliveryError, RecipientsRefused, Refusal
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage

__all__ = ["Send", "send_in_envelopes"]

logger = logging.getLogger("openviper.email")

_TOO_MANY_RECIPIENTS = 452  # RFC 5321 section 4.5.3.1.10

Send = Callable[[OutgoingMessage], Awaitable[DeliveryReport]]


async def send_in_envelopes(message: OutgoingMessage, send: Send, *, max_recipients: int) -> DeliveryReport:
    """Send ``message`` to all its recipients, at most ``max_recipients`` in a transaction.

    Those whom the server answers 452 get a transaction of their own as long as each one reaches somebody. When a later
    transaction fails after an earlier one has succeeded, its recipients are in ``refused``: with the server's reply
    where it gave one, else with 451 (worth another try) or 554, and the reason as the text. Where nobody knows whether
    the server took the transaction, they are ``uncertain``: sending to them again may deliver twice.

    Raises:
        InvalidAddress: a recipient cannot stand in a command; nothing was sent.
        DeliveryError: nobody is known to have it; ``refused`` tells those who may have it from the others, if any.
    """
    recipients = message.envelope.recipients
    if len(recipients) <= max_recipients:
        outcome = await send(message)
        if not outcome.refused:
            return outcome
        delivery = _Delivery(message, send, max_recipients)
        delivery.waiting.clear()
        delivery.note(outcome)
    else:
        for recipient in recipients:
            rcpt_to(recipient)  # a wrong one must not come to light when the first envelope is delivered
        delivery = _Delivery(message, send, max_recipients)
    return await delivery.run()


class _Delivery:
    def __init__(self, message: OutgoingMessage, send: Send, max_recipients: int) -> None:
        self._message = message
        self._send = send
        recipients = message.envelope.recipients
        self.waiting = deque(recipients[at : at + max_recipients] for at in range(0, len(recipients), max_recipients))
        self._accepted: list[str] = []
        self._refused: dict[str, Refusal] = {}
        self._response = ""

    async def run(self) -> DeliveryReport:
        failure: DeliveryError | None = None
        while self.waiting:
            recipients = self.waiting.popleft()
            try:
                self.note(await self._send(self._message.for_recipients(recipients)))
            except RecipientsRefused as error:
                self._note_refusal(error)
            except DeliveryError as error:
                # Neither a dead server nor a refused content will treat the next envelope better.
                failure = error
                self._give_up(error, recipients)
        if not self._accepted:
            if failure is not None and failure.uncertain and not all(each.uncertain for each in self._refused.values()):
                failure.refused = self._refused
            raise failure or RecipientsRefused(
                f"{len(self._refused)} recipients refused, nothing was sent: {_codes(self._refused)}",
                accepted=(),
                refused=self._refused,
            )
        if self._refused:
            total = len(self._message.envelope.recipients)
            uncertain = sum(refusal.uncertain for refusal in self._refused.values())
            logger.warning(
                "message %s: %d of %d recipients refused (%s)%s",
                self._message.message_id,
                len(self._refused),
                total,
                _codes(self._refused),
                f"; {uncertain} of them perhaps have it" if uncertain else "",
            )
        return DeliveryReport(tuple(self._accepted), self._refused, self._response)

    def note(self, outcome: DeliveryReport) -> None:
        """Add what one transaction has brought."""
        self._accepted += outcome.accepted
        self._response = outcome.response
        later = tuple(address for address, refusal in outcome.refused.items() if refusal.code == _TOO_MANY_RECIPIENTS)
        if later:
            self.waiting.appendleft(later)
        self._refused.update((key, value) for key, value in outcome.refused.items() if key not in later)

    def _note_refusal(self, error: RecipientsRefused) -> None:
        self._refused.update(error.refused)
        for address in error.accepted:
            self._refused[address] = Refusal(451, "not sent, because another recipient of its envelope was refused")

    def _give_up(self, error: DeliveryError, recipients: tuple[str, ...]) -> None:
        refusal = Refusal(error.code or (451 if error.temporary else 554), str(error), error.uncertain)
        self._refused.update(error.refused or dict.fromkeys(recipients, refusal))
        if error.uncertain:
            refusal = Refusal(451, "not sent, because the connection failed in another envelope of the message")
        for envelope in self.waiting:
            self._refused.update(dict.fromkeys(envelope, refusal))
        self.waiting.clear()


def _codes(refused: dict[str, Refusal]) -> str:
    counts = Counter(refusal.code for refusal in refused.values())
    return ", ".join(f"{count} x {code}" for code, count in sorted(counts.items()))
