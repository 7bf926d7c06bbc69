"""Mailers whose backends the tests steer."""

from openviper.core.email import (
    ConnectionFailed,
    DeliveryError,
)
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery import Mailer
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

__all__ = ["Refusing", "memory_mailer", "refusing_mailer", "sent"]


class Refusing(EmailBackend):
    """Fails ``failures`` times, then accepts."""

    failures = 0
    error: DeliveryError | None = None

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        if self.error is not None:
            raise self.error
        if self.failures:
            self.failures -= 1
            raise ConnectionFailed("mail.test:25: connection refused", temporary=True)
        return DeliveryReport(message.envelope.recipients, response="250 ok")


def memory_mailer(**settings: object) -> Mailer:
    return Mailer(EmailSettings(backend="MemoryBackend", default_sender="shop@example.test", **settings))


def refusing_mailer(failures: int, **settings: object) -> Mailer:
    mailer = Mailer(EmailSettings(backend=f"{__name__}.Refusing", default_sender="shop@example.test", **settings))
    assert isinstance(mailer.backend, Refusing)
    mailer.backend.failures = failures
    return mailer


def sent(mailer: Mailer) -> list[OutgoingMessage]:
    assert isinstance(mailer.backend, MemoryBackend)
    return list(mailer.backend.messages)
