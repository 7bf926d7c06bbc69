"""Drop messages: for load tests, and for systems that must not send."""

from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.message import OutgoingMessage

__all__ = ["NullBackend"]


class NullBackend(EmailBackend):
    """Backend that accepts every recipient, and keeps, counts and prints nothing."""

    keeps_mail = True

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Accept and drop ``message``."""
        return DeliveryReport(accepted=message.envelope.recipients, response="dropped")
