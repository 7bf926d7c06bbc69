"""Say what to do about a failed delivery: by its reply code, by the certificate, or by how far connecting got."""

import socket
from collections.abc import Mapping

from openviper.core.email.backends.smtp.errors import causes, certificate_error, is_greeting_error, is_tls_error
from openviper.core.email.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    MessageRefused,
    RecipientsRefused,
)
from openviper.core.email.settings import EmailSettings, settings_origin

__all__ = ["NO_ADDRESS", "NO_GREETING", "UNREACHABLE", "failure_remedy", "reply_remedy", "tls_remedy"]

NO_ADDRESS = 'correct EMAIL["host"], or the DNS of this machine'
UNREACHABLE = 'correct EMAIL["host"] and EMAIL["port"]; check that the server runs and no firewall blocks it'
NO_GREETING = 'check that a mail server listens there; for implicit TLS (port 465) set EMAIL["use_ssl"]'

_CLOCK = "correct this machine's clock, or replace the certificate"
_TRUST = 'set EMAIL["tls_ca_file"] to its authority\'s PEM file, or use a certificate from a public authority'
_INCOMPLETE = f"{_TRUST}; or the server does not send its intermediate certificates"
_NAME = 'set EMAIL["host"] to a name that is in the certificate'
# By OpenSSL's error numbers, X509_V_ERR_...
_CERTIFICATE = {
    9: _CLOCK,  # CERT_NOT_YET_VALID
    10: "renew the certificate on the mail server; if it is new, correct this machine's clock",  # CERT_HAS_EXPIRED
    18: _TRUST,  # DEPTH_ZERO_SELF_SIGNED_CERT
    19: _TRUST,  # SELF_SIGNED_CERT_IN_CHAIN
    20: _INCOMPLETE,  # UNABLE_TO_GET_ISSUER_CERT_LOCALLY
    21: _INCOMPLETE,  # UNABLE_TO_VERIFY_LEAF_SIGNATURE
    62: _NAME,  # HOSTNAME_MISMATCH
    64: _NAME,  # IP_ADDRESS_MISMATCH
}

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
    'use an EMAIL["default_sender"] from which this login may send, or allow it on the server; '
    "the server may also refuse this machine's address"
)
_VERIFY = (
    'verify the address or domain of EMAIL["default_sender"] at the provider; while the account is in a sandbox, each '
    "recipient too"
)
_ADDRESS = "correct the address, or do not mail it again; error.refused has each address with its reply"
_CLOSING = (
    "the server closes the connection: it is overloaded, is restarting, or has too many connections from here; "
    'retry later, or lower EMAIL["pool_size"]'
)


def failure_remedy(failure: DeliveryError, settings: EmailSettings) -> str | None:
    """Return what may be done about a failed delivery, and the section of the docs about it; None if nothing is known.

    Does not contact the server.
    """
    remedy = _known_remedy(failure, settings)
    return remedy and f"{remedy} (docs: {_section(failure)})"


def _section(failure: DeliveryError) -> str:
    if isinstance(failure, AuthenticationFailed) or failure.code in (530, 534, 535, 538):
        return "troubleshooting#login"
    if isinstance(failure, MessageRefused | RecipientsRefused):
        return "troubleshooting#refused"
    return "troubleshooting#connection"


def _known_remedy(failure: DeliveryError, settings: EmailSettings) -> str | None:
    if by_code := reply_remedy(failure, settings, None):
        return by_code
    if failure.code is not None or not isinstance(failure, ConnectionFailed | TimeoutError):
        return None
    chain = causes(failure.__cause__)
    if is_tls_error(failure):
        return tls_remedy(failure, settings)
    if is_greeting_error(failure):
        return NO_GREETING
    if not any(isinstance(cause, OSError) for cause in chain):  # lost later, when the settings had proved right
        return None
    if settings.host == "localhost" and "host" not in EmailSettings.sources():
        return f'set EMAIL["host"], which is not set; {settings_origin()}'
    return NO_ADDRESS if any(isinstance(cause, socket.gaierror) for cause in chain) else UNREACHABLE


def tls_remedy(failure: DeliveryError, settings: EmailSettings) -> str:
    """Return the remedy for a failed TLS handshake or STARTTLS."""
    untrusted = certificate_error(failure)
    if untrusted is not None:
        return _CERTIFICATE.get(untrusted.verify_code, _TRUST)
    if by_code := reply_remedy(failure, settings, None):
        return by_code
    if isinstance(failure, TimeoutError):
        return 'check that the port uses TLS: EMAIL["use_ssl"] is for port 465, EMAIL["use_tls"] for 587 and 25'
    if settings.use_ssl or is_tls_error(failure):
        return 'EMAIL["use_ssl"] is for port 465, EMAIL["use_tls"] for 587 and 25; the server needs TLS 1.2 or newer'
    return "enable STARTTLS on the server, or use the port that offers it (587); mail is not sent without it"


def reply_remedy(failure: DeliveryError, settings: EmailSettings, offered: Mapping[str, str] | None) -> str | None:
    """Return the remedy for the reply in ``failure``; None if its code has none of its own.

    ``offered``: the extensions of the last EHLO, in lower case; None if unknown.
    """
    said = str(failure).lower()
    encrypted = settings.use_tls or settings.use_ssl
    if failure.code == 530:
        # The same code, and 5.7.0 with it, asks for STARTTLS (RFC 3207) and for AUTH (RFC 4954).
        may_log_in = "authenticat" in said if offered is None else "auth" in offered
        if not encrypted and ("starttls" in said or not may_log_in):
            return _USE_TLS
        return _LOG_IN if settings.username is None else _LOGGED_IN
    if failure.code == 538:
        return _METHOD if encrypted else _USE_TLS
    if failure.enhanced == "5.7.1" and failure.code in (550, 553, 554):
        return _POLICY
    if failure.code in (550, 554) and "not verified" in said:
        return _VERIFY
    if isinstance(failure, RecipientsRefused) and (failure.enhanced or "").startswith("5.1."):
        return _ADDRESS
    return {421: _CLOSING, 534: _METHOD, 535: _CREDENTIALS}.get(failure.code or 0)
