"""Errors of mail, grouped by what the caller can do about them.

::

    EmailError
    ├─ InvalidMessage(ValueError)          the input is wrong; raised before anything is sent
    │  ├─ InvalidAddress                   .address, .reason
    │  ├─ AttachmentRefused                .filename, .reason, .too_large
    │  ├─ DuplicateKey                     .key, .message_id
    │  └─ TemplateFailed                   .template
    ├─ DeliveryError                       .temporary, .uncertain, .code, .enhanced, .refused
    │  ├─ ConnectionFailed(ConnectionError)
    │  │  └─ AuthenticationFailed
    │  ├─ DeliveryTimeout(TimeoutError)
    │  │  └─ PoolTimeout
    │  ├─ KeysUnavailable
    │  ├─ SendingPaused                    .mailer, .until
    │  ├─ SuppressionUnavailable
    │  ├─ MessageRefused
    │  └─ RecipientsRefused                .accepted
    └─ QueueUnavailable                    nothing was queued and nothing was sent
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openviper.exceptions import OpenViperError
from openviper.text import shown

__all__ = [
    "AttachmentRefused",
    "AuthenticationFailed",
    "ConnectionFailed",
    "DeliveryError",
    "DeliveryTimeout",
    "DuplicateKey",
    "EmailError",
    "InvalidAddress",
    "InvalidMessage",
    "KeysUnavailable",
    "MessageRefused",
    "PoolTimeout",
    "QueueUnavailable",
    "RecipientsRefused",
    "Refusal",
    "SendingPaused",
    "SuppressionUnavailable",
    "TemplateFailed",
]


_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a recipient did not get the message, or may not have: a reply code (RFC 5321 section 4.2) and text.

    ``uncertain``: the connection ended after the whole message was sent and before the server answered, so this
    recipient may have it (RFC 1047); the code is then not the server's.
    """

    code: int
    text: str
    uncertain: bool = False

    @property
    def temporary(self) -> bool:
        """True for 4yz: the same command may succeed later (RFC 5321 section 4.2.1)."""
        return 400 <= self.code < 500

    @property
    def enhanced(self) -> str | None:
        """Return the enhanced status code that the text begins with, such as ``5.2.2`` (RFC 2034, RFC 3463).

        None if there is none, or if its class contradicts the reply code: then only the reply code counts.
        """
        match = _ENHANCED.match(self.text)
        return match[0] if match is not None and int(match[1]) == self.code // 100 else None

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


class EmailError(OpenViperError):
    """Base of every error about a message or its delivery; configuration errors stand outside."""


class InvalidMessage(EmailError, ValueError):
    """The message cannot be sent as given. Raised in the caller, before any delivery; never silenced."""


class InvalidAddress(InvalidMessage):
    """An address cannot be used; ``address`` is the value as given, ``reason`` says what is wrong with it.

    ``reason`` continues a sentence ("This address ...") and may be shown to whoever has entered the address.
    """

    def __init__(self, message: str, *, address: str, reason: str = "") -> None:
        super().__init__(message)
        self.address = address
        self.reason = reason


class AttachmentRefused(InvalidMessage):
    """An attachment cannot be read or is not allowed; ``filename`` names it, ``reason`` says why.

    ``too_large``: it, or all attachments together, have more bytes than the settings allow.
    """

    def __init__(self, filename: str, reason: str, *, too_large: bool = False) -> None:
        super().__init__(f"attachment {shown(filename)}: {reason}")
        self.filename = filename
        self.reason = reason
        self.too_large = too_large


class TemplateFailed(InvalidMessage):
    """A template is missing, outside the folders, or could not be rendered; ``template`` is its name."""

    def __init__(self, template: str, reason: str) -> None:
        super().__init__(f"template {shown(template)}: {reason}")
        self.template = template


class DuplicateKey(InvalidMessage):
    """An idempotency key was used for a message with other content; ``message_id`` is that message's."""

    def __init__(self, key: str, message_id: str) -> None:
        super().__init__(
            f"key: {shown(key)} was used for another message ({message_id}), with other recipients, content or "
            "attachments; give each message its own key, and do not change a message that you send again"
        )
        self.key = key
        self.message_id = message_id


class DeliveryError(EmailError):
    """The message could not be delivered.

    ``temporary``: a later attempt may succeed. ``uncertain``: the connection ended after the whole message was sent and
    before the server answered, so it may or may not have been taken (RFC 1047); another attempt may deliver it twice.
    ``code``: the server's reply code, None when the server did not say no; ``enhanced``: the enhanced status code of
    that reply (see :attr:`Refusal.enhanced`), None without one. ``refused``: address to :class:`Refusal`
    for each recipient, where they differ (one envelope of several is uncertain, say); empty where all share the error.
    ``summary``: the reason for logs, without addresses, content and the server's words; None where there is none.
    ``suppressed``: recipients whom ``EMAIL["suppress"]`` left out of the attempt that failed.
    ``protocol``: the dialogue of the transaction with ``EMAIL["protocol_log"]``, without content and secrets, addresses
    cut to their domains; None without one.
    """

    def __init__(
        self,
        message: str,
        *,
        temporary: bool = False,
        uncertain: bool = False,
        code: int | None = None,
        enhanced: str | None = None,
        summary: str | None = None,
    ) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.uncertain = uncertain
        self.code = code
        self.enhanced = enhanced
        self.summary = summary
        self.refused: dict[str, Refusal] = {}
        self.suppressed: tuple[str, ...] = ()
        self.protocol: str | None = None


class ConnectionFailed(DeliveryError, ConnectionError):
    """The server could not be reached, spoke no SMTP, dropped the connection, or its TLS could not be trusted."""


class AuthenticationFailed(ConnectionFailed):
    """The server refused the login, requires one that was not made, or offers no way to make it safely."""


class DeliveryTimeout(DeliveryError, TimeoutError):
    """The server did not answer in time."""


class PoolTimeout(DeliveryTimeout):
    """No connection of the pool became free in time; nothing was sent."""


class KeysUnavailable(DeliveryError):
    """Nothing can say whether an idempotency key was used before, so the message was not sent; temporary."""


class SendingPaused(DeliveryError):
    """Sending is paused, by ``viperctl email pause``; temporary, and nothing was sent.

    ``mailer``: the mailer whose mail is paused, None for all mail. ``until``: Unix seconds, None without a known end.
    """

    def __init__(self, message: str, *, mailer: str | None, until: float | None) -> None:
        super().__init__(message, temporary=True)
        self.mailer = mailer
        self.until = until


class SuppressionUnavailable(DeliveryError):
    """``EMAIL["suppress"]`` did not say who must not be mailed, so nobody was; temporary."""


class MessageRefused(DeliveryError):
    """The server refused the sender or the content, so nobody received the message."""


class RecipientsRefused(DeliveryError):
    """Recipients were refused: all of them, or some with ``EMAIL["allow_partial"]`` off.

    ``accepted``: the addresses that the server took (nothing was sent to them unless they are also reported as
    delivered); ``refused``: address to :class:`Refusal`. ``temporary`` and ``uncertain`` are True when a refusal is.
    """

    def __init__(
        self, message: str, *, accepted: Sequence[str], refused: Mapping[str, Refusal], summary: str | None = None
    ) -> None:
        codes = {refusal.code for refusal in refused.values()}
        enhanced = {refusal.enhanced for refusal in refused.values()}
        super().__init__(
            message,
            temporary=any(refusal.temporary for refusal in refused.values()),
            uncertain=any(refusal.uncertain for refusal in refused.values()),
            code=codes.pop() if len(codes) == 1 else None,
            enhanced=enhanced.pop() if len(enhanced) == 1 else None,
            summary=summary,
        )
        self.accepted = tuple(accepted)
        self.refused = dict(refused)


class QueueUnavailable(EmailError):
    """The broker did not accept the message; nothing was queued and nothing was sent. The cause is chained."""
