"""Say what to do about a refusal, by its reply code."""

from collections.abc import Mapping

from openviper.core.email.errors import DeliveryError
from openviper.core.email.settings import EmailSettings

__all__ = ["reply_remedy"]

_USE_TLS = (
    'set EMAIL["use_tls"] (STARTTLS, port 587) or EMAIL["use_ssl"] (port 465): the server requires encryption first'
)
_LOG_IN = 'set EMAIL["username"] and EMAIL["password"]: the server requires a login first'
_LOGGED_IN = "the server ignores this connection's login; look at its log, and at the port (587 or 465)"
_CREDENTIALS = 'correct EMAIL["username"] and EMAIL["password"]; many providers require an app password'
_METHOD = (
    "the server refuses this kind of login for this account: create an app password at the provider, "
    'or set EMAIL["xoauth2_token"]'
)
_POLICY = (
    'use an EMAIL["default_sender"] that this login may send for, or allow it at the server; '
    "the server may also refuse this machine's address"
)
_CLOSING = (
    "the server closes the connection: it is overloaded, restarts, or has too many connections from here; "
    'retry later, or lower EMAIL["pool_size"]'
)


def reply_remedy(failure: DeliveryError, settings: EmailSettings, offered: Mapping[str, str]) -> str | None:
    """Return the remedy for the reply in ``failure``; None if its code has none of its own.

    ``offered``: the extensions of the last EHLO, in lower case.
    """
    encrypted = settings.use_tls or settings.use_ssl
    if failure.code == 530:
        # The same code, and 5.7.0 with it, asks for STARTTLS (RFC 3207) and for AUTH (RFC 4954).
        if not encrypted and ("starttls" in str(failure).lower() or "auth" not in offered):
            return _USE_TLS
        return _LOG_IN if settings.username is None else _LOGGED_IN
    if failure.code == 538:
        return _METHOD if encrypted else _USE_TLS
    if failure.enhanced == "5.7.1" and failure.code in (550, 553, 554):
        return _POLICY
    return {421: _CLOSING, 534: _METHOD, 535: _CREDENTIALS}.get(failure.code or 0)
