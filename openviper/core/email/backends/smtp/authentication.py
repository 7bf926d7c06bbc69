"""Log in by AUTH (RFC 4954): never in the clear, by one method after another, and without secrets in any error."""

import base64
import binascii
import hmac
from contextlib import suppress

import aiosmtplib
from pydantic import SecretStr

from openviper.core.email.backends.smtp.errors import HANDSHAKE_ERRORS, HandshakeStep, handshake_error
from openviper.core.email.errors import AuthenticationFailed, DeliveryError
from openviper.core.email.settings import EmailSettings
from openviper.network import is_loopback

__all__ = ["authenticate"]

_LONGEST_COMMAND = 512  # octets with CRLF, also of AUTH with an initial response (RFC 4954 section 4)
# Replies about the method or its syntax, not about the credentials: unknown, too weak, or encryption needed.
_METHOD_REFUSALS = frozenset({500, 501, 502, 503, 504, 534, 538})


async def authenticate(
    client: aiosmtplib.SMTP,
    settings: EmailSettings,
    peer: str,
    refusals: list[DeliveryError] | None = None,
    *,
    token: SecretStr | None = None,
) -> None:
    """Log in with ``token``, else with the settings' ``password`` by the methods that both sides support, best first.

    The next method is tried after a refusal of the method itself, because some servers offer methods that they do not
    support. A refusal of the credentials ends it: each further one would count as another failed login.
    No error contains a secret: neither its text, nor its cause, nor a frame of its traceback.

    ``token``: the access token for XOAUTH2. ``refusals`` receives the error of each method as soon as it is known.

    Raises:
        AuthenticationFailed: refused, not offered, or the connection is not private.
        DeliveryError: the connection failed.
    """
    _require_private_connection(client, peer)
    refusals = [] if refusals is None else refusals
    for name in _auth_methods(client, peer, with_token=token is not None):
        failure, about_method = await _try_method(client, settings, peer, name, token)
        if failure is None:
            return
        refusals.append(failure)
        if not (about_method and client.is_connected):
            break
    # Outside any except block, so that the original error, whose frames hold the password, does not become its context.
    raise _decisive(refusals)


def _decisive(refusals: list[DeliveryError]) -> DeliveryError:
    """Return the error that ended the attempts, else the first of those about methods."""
    first, last = refusals[0], refusals[-1]
    if last is first or last.code in _METHOD_REFUSALS or (last.code is None and not last.temporary):
        return first
    if last.code is None:
        return type(last)(f"{last}; before that: {first}", temporary=True, summary=last.summary)
    return last


def _require_private_connection(client: aiosmtplib.SMTP, peer: str) -> None:
    transport = client.transport
    if transport is None or transport.get_extra_info("sslcontext") is not None:
        return
    address = transport.get_extra_info("peername")
    if not is_loopback(address[0]):
        text = (
            f"{peer}: AUTH: the password would be sent in clear text; "
            'set EMAIL["use_tls"] (STARTTLS) or EMAIL["use_ssl"]'
        )
        raise AuthenticationFailed(text, summary=text)


def _auth_methods(client: aiosmtplib.SMTP, peer: str, *, with_token: bool) -> list[str]:
    offered = client.server_auth_methods
    methods = [name for name in offered if name == "xoauth2"] if with_token else client.supported_auth_methods
    if not methods:
        offer = f"offers only {', '.join(offered).upper()}" if offered else "offers no AUTH"
        required = "XOAUTH2" if with_token else "CRAM-MD5, PLAIN or LOGIN"
        remedy = "leave the login out, or use the port for clients (587 with use_tls, 465 with use_ssl)"
        text = f'{peer}: AUTH: EMAIL["username"] is set, but the server {offer}, not {required}'
        text = text if offered else f"{text}; {remedy}"
        raise AuthenticationFailed(text, summary=text)
    return methods


async def _try_method(
    client: aiosmtplib.SMTP, settings: EmailSettings, peer: str, name: str, token: SecretStr | None
) -> tuple[DeliveryError | None, bool]:
    """Log in by the method ``name``.

    Return the error, free of secrets, and whether it is about the method rather than the credentials; None after a
    success.
    """
    username = settings.username or ""
    given = token or settings.password
    assert given is not None
    secret = given.get_secret_value()
    try:
        reply = await _exchange(client, _method(name, username, secret))
    except HANDSHAKE_ERRORS as error:
        safe = _without_secrets(error, username, secret)
    else:
        if reply is None:
            text = (
                f"{peer}: AUTH: the server asked for something that {name.upper()} does not send; login was cancelled"
            )
            return AuthenticationFailed(text, summary=text), True
        if 200 <= reply.code < 300:
            return None, False
        safe = _without_secrets(aiosmtplib.SMTPAuthenticationError(reply.code, reply.message), username, secret)
    failure = handshake_error(peer, HandshakeStep.AUTH, safe)
    failure.__cause__ = safe
    return failure, failure.code in _METHOD_REFUSALS


async def _exchange(client: aiosmtplib.SMTP, method: "_Method") -> aiosmtplib.SMTPResponse | None:
    """Return the last reply; None if the server asked for something that the method does not send."""
    reply = await client.execute_command(*method.command())
    while 300 <= reply.code < 400:
        response = method.respond(reply.message)
        if response is None:
            with suppress(*HANDSHAKE_ERRORS):  # the result is known already
                await client.execute_command(b"*")
            return None
        reply = await client.execute_command(response)
    return reply


class _Method:
    """A method that sends ``responses`` one after another, whatever the challenges (PLAIN, XOAUTH2)."""

    def __init__(self, name: str, *responses: str, initial: bool = True) -> None:
        self._name = name.upper().encode()
        self._responses = [base64.b64encode(response.encode()) for response in responses]
        self._initial = initial

    def command(self) -> list[bytes]:
        """Return the words of the AUTH command, with the first response if it may stand there and fits."""
        words = [b"AUTH", self._name]
        if self._initial and len(b" ".join([*words, self._responses[0]])) + 2 <= _LONGEST_COMMAND:
            words.append(self._responses.pop(0) or b"=")
        return words

    def respond(self, _challenge: str, /) -> bytes | None:
        """Return the answer to a challenge; None to cancel the exchange."""
        return self._responses.pop(0) if self._responses else None


class _Login(_Method):
    """LOGIN, whose prompts say what to send; prompts of other wording are taken in the usual order."""

    def __init__(self, username: str, password: str) -> None:
        super().__init__("login", username, password)
        self._username = self._responses[0]
        self._repeated = False

    def respond(self, challenge: str, /) -> bytes | None:
        """Send the user name again, once, where the server ignored it in the command; never a password in its place."""
        prompt = (_decoded(challenge).decode(errors="replace") or challenge).lower()
        wants_password = "pass" in prompt
        wants_name = not wants_password and ("user" in prompt or "login" in prompt)
        name_is_next = len(self._responses) == 2
        if wants_name and not name_is_next:
            if self._repeated:
                return None
            self._repeated = True
            return self._username if self._responses else None
        if wants_password and name_is_next:
            return None
        return super().respond(challenge)


class _CramMd5(_Method):
    def __init__(self, username: str, password: str) -> None:
        super().__init__("cram-md5", initial=False)
        self._username, self._password = username, password
        self._answered = False

    def respond(self, challenge: str, /) -> bytes | None:
        """Answer the first challenge (RFC 2195)."""
        text = _decoded(challenge)
        if self._answered or not text:
            return None
        self._answered = True
        digest = hmac.new(self._password.encode(), text, "md5").hexdigest()
        return base64.b64encode(f"{self._username} {digest}".encode())


def _method(name: str, username: str, secret: str) -> _Method:
    if name == "cram-md5":
        return _CramMd5(username, secret)
    if name == "login":
        return _Login(username, secret)
    if name == "xoauth2":
        # The server explains a refusal in a challenge, and gives the reply after an empty response.
        return _Method(name, _bearer(username, secret), "")
    return _Method(name, f"\0{username}\0{secret}")


def _bearer(username: str, token: str) -> str:
    return f"user={username}\1auth=Bearer {token}\1\1"


def _decoded(challenge: str) -> bytes:
    """Return the text of a challenge; empty where it is not base64."""
    try:
        return base64.b64decode(challenge.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _without_secrets(error: Exception, username: str, secret: str) -> Exception:
    """Return an equivalent of ``error`` without its traceback, and without secrets that the server may have echoed."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if error.code < 0:
            return aiosmtplib.SMTPServerDisconnected("the answer is not an SMTP reply")
        return aiosmtplib.SMTPAuthenticationError(error.code, _redact(error.message, username, secret))
    if isinstance(error, TimeoutError):
        return aiosmtplib.SMTPReadTimeoutError("no answer")
    return aiosmtplib.SMTPServerDisconnected("the server closed the connection")


def _redact(text: str, username: str, secret: str) -> str:
    plain = f"\0{username}\0{secret}"
    forms = (secret, plain, _bearer(username, secret))
    secrets = [secret, *(base64.b64encode(form.encode()).decode() for form in forms)]
    for form in secrets:
        text = text.replace(form, "***")
    return " ".join("***" if len(word) > 5 and _is_part_of(word, secrets) else word for word in text.split())


def _is_part_of(word: str, secrets: list[str]) -> bool:
    return any(word.strip("'\"<>().,;:") in form for form in secrets)
