"""Get OAuth 2 access tokens for XOAUTH2: one request at a time, kept until they expire, and never shown."""

import asyncio
import contextlib
import copy
import json
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from datetime import timedelta
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from openviper.conf.imports import import_string
from openviper.core.email.backends.smtp.errors import peer_name
from openviper.core.email.errors import AuthenticationFailed, DeliveryError, DeliveryTimeout
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import call_function
from openviper.network import is_loopback
from openviper.text import error_origin, function_name, shown

__all__ = ["OAuth2Client", "Token", "TokenSource", "google_oauth2", "microsoft_oauth2", "token_provider"]

logger = logging.getLogger("openviper.email")

Provider = Callable[[], Any]

# A token is renewed before it expires, by this share of its life, because the server's clock may differ from ours.
_MARGIN, _LONGEST_MARGIN = 0.05, 300.0
_REQUEST_TIMEOUT = 10.0  # seconds
_PUBLIC = frozenset({"grant_type", "scope", "client_id"})  # parameters of a form that are no secrets


class Token:
    """An access token; ``repr`` hides it."""

    def __init__(self, value: str, renew_at: float) -> None:
        self.value = SecretStr(value)
        self.renew_at = renew_at


class TokenSource:
    """The tokens of one provider, for the connections of one event loop.

    ``provider`` returns a token or ``(token, expires_in)`` with seconds or a timedelta, and may be async; a plain
    function is called in a thread. A token with an expiry is kept until shortly before it; one without is asked for at
    each connection. Connections that need a token at the same moment share one call.
    """

    def __init__(self, provider: Provider, *, peer: str, timeout: float) -> None:
        """``timeout``: seconds for one call; ``peer``: the mail server, for error texts."""
        self._provider = provider
        self._peer = peer
        self._timeout = timeout
        self._current: Token | None = None
        self._asking: asyncio.Task[Token] | None = None

    @classmethod
    def from_settings(cls, settings: EmailSettings) -> Self | None:
        """Return the source that the settings ask for; None if they have no provider.

        Raises:
            ImproperlyConfigured: there is no such provider.
        """
        provider = token_provider(settings)
        return None if provider is None else cls(provider, peer=peer_name(settings), timeout=settings.timeout)

    async def get(self) -> Token:
        """Return a token that is valid, as far as its expiry tells.

        Raises:
            AuthenticationFailed: the provider failed, or returned no token.
            DeliveryTimeout: the provider took too long.
        """
        if self._current is not None and asyncio.get_running_loop().time() < self._current.renew_at:
            return self._current
        if self._asking is None:
            # Not in the context, nor in the cancel scope, of the first of its waiters.
            self._asking = asyncio.get_running_loop().create_task(self._ask(), context=Context())
            self._asking.add_done_callback(self._asked)
        try:
            return await asyncio.shield(self._asking)
        except DeliveryError as error:
            failure = copy.copy(error)  # waiters must not share a traceback
        raise failure

    def forget(self, token: Token) -> None:
        """Drop ``token``, which the server has refused, so that the next ``get`` asks for another."""
        if self._current is token:
            self._current = None

    def _asked(self, task: asyncio.Task[Token]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # known to the waiters, unless all of them were cancelled

    async def _ask(self) -> Token:
        asked_at = asyncio.get_running_loop().time()
        failure: DeliveryError
        try:
            async with asyncio.timeout(self._timeout) as timeout:
                token, life = _checked(await call_function(self._provider))
            renew_at = asked_at if life is None else asked_at + life - min(life * _MARGIN, _LONGEST_MARGIN)
            self._current = Token(token, renew_at)
            return self._current
        except TimeoutError as error:
            text = (
                f"did not return within {self._timeout:g} s" if timeout.expired() else f"raised {error_origin(error)}"
            )
            failure = DeliveryTimeout(f"{self._text} {text}", temporary=True, summary=f"{self._text} {text}")
        except _NoTokenError as error:
            text = f"{self._text} {error}"
            failure = AuthenticationFailed(text, temporary=error.temporary, summary=self._text)
        except Exception as error:  # noqa: BLE001 - the provider is the user's code
            text = f"{self._text} raised {error_origin(error)}"
            failure = AuthenticationFailed(text, temporary=True, summary=text)
        # Outside any except block: the frames and the text of the original error may hold tokens.
        raise failure

    @property
    def _text(self) -> str:
        return f"{self._peer}: AUTH: the token provider {_name(self._provider)}"


class _NoTokenError(Exception):
    def __init__(self, text: str, *, temporary: bool = False) -> None:
        super().__init__(text)
        self.temporary = temporary


class OAuth2Client:
    """Token provider that posts a form to an OAuth 2 token endpoint (RFC 6749), with the client's secret in the form.

    Give it as ``EMAIL["xoauth2_token"]``. A new refresh token in an answer replaces the one in ``form``;
    ``on_refresh_token`` is called with it, in the thread of the request, so that you can store it.
    """

    def __init__(
        self,
        token_url: str,
        form: Mapping[str, str],
        *,
        on_refresh_token: Callable[[str], object] | None = None,
        timeout: float = _REQUEST_TIMEOUT,
    ) -> None:
        """``timeout``: seconds for connecting and for each read.

        Raises:
            ImproperlyConfigured: ``token_url`` is not https, and not on this machine; or a value of ``form`` is empty.
        """
        try:
            parts = urlsplit(token_url)
        except ValueError:
            raise ImproperlyConfigured(f"token_url: {shown(token_url)} is not a URL") from None
        if parts.username is not None or parts.password is not None:
            raise ImproperlyConfigured("token_url: has a user name or password in it; give them in the form")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ImproperlyConfigured(f"token_url: {shown(token_url)} would get the secret in clear text; use https")
        for name, value in form.items():
            if not value:
                raise ImproperlyConfigured(f"{name}: is empty; give the value that the provider shows")
        self._url = token_url
        self._form = {name: SecretStr(value) for name, value in form.items()}
        self._on_refresh_token = on_refresh_token
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._url}>"

    def __call__(self) -> tuple[str, float | None]:
        """Return an access token and its life in seconds, None if the endpoint does not say; blocks."""
        import httpx  # takes long, and this runs in a thread

        form = {name: value.get_secret_value() for name, value in self._form.items()}
        failure: _NoTokenError | None = None
        try:
            response = httpx.post(self._url, data=form, timeout=self._timeout)
        except httpx.HTTPError as error:
            failure = _NoTokenError(f"cannot reach {self._url}: {type(error).__name__}", temporary=True)
        if failure is not None:
            raise failure  # outside the except block: the request, with the secret, hangs on the error
        answer = _json_object(response.content)
        token = answer.get("access_token")
        if response.status_code != 200 or not isinstance(token, str):
            temporary = response.status_code in (408, 429) or response.status_code >= 500
            raise _NoTokenError(
                f"got {self._refusal(response.status_code, answer)} from {self._url}", temporary=temporary
            )
        self._keep_refresh_token(answer.get("refresh_token"))
        return token, _seconds(answer.get("expires_in"))

    def _keep_refresh_token(self, given: object) -> None:
        known = self._form.get("refresh_token")
        if known is None or not isinstance(given, str) or not given or given == known.get_secret_value():
            return
        self._form["refresh_token"] = SecretStr(given)
        if self._on_refresh_token is not None:
            try:
                self._on_refresh_token(given)
            except Exception as error:  # noqa: BLE001 - the access token is good all the same
                logger.error(
                    "on_refresh_token raised %s; the new refresh token is used but not stored", type(error).__name__
                )

    def _refusal(self, status: int, answer: Mapping[str, object]) -> str:
        """Return an error answer (RFC 6749 section 5.2) as text, without the secrets that it may repeat."""
        words = [str(answer[name]) for name in ("error", "error_description") if isinstance(answer.get(name), str)]
        text = ": ".join(words) or "no access token"
        for name, value in self._form.items():
            if name not in _PUBLIC:
                text = text.replace(value.get_secret_value(), "***")
        return f"{status} {shown(text, whole=200)}"


def google_oauth2(
    *, client_id: str, client_secret: str, refresh_token: str, token_url: str | None = None
) -> OAuth2Client:
    """Return a token provider for Gmail and Google Workspace by a refresh token.

    The refresh token comes from a consent to the scope ``https://mail.google.com/``. ``token_url`` None: Google's.
    """
    form = {"client_id": client_id, "client_secret": client_secret, "refresh_token": refresh_token}
    return OAuth2Client(token_url or "https://oauth2.googleapis.com/token", {"grant_type": "refresh_token", **form})


def microsoft_oauth2(
    *,
    tenant: str,
    client_id: str,
    client_secret: str,
    refresh_token: str | None = None,
    on_refresh_token: Callable[[str], object] | None = None,
    token_url: str | None = None,
) -> OAuth2Client:
    """Return a token provider for Microsoft 365.

    ``refresh_token`` None: client credentials, for an application with the permission ``SMTP.SendAsApp``; else the
    refresh flow, for a consent to ``https://outlook.office.com/SMTP.Send offline_access``. ``on_refresh_token``: see
    :class:`OAuth2Client`. ``token_url`` None: the tenant's.
    """
    form = {"client_id": client_id, "client_secret": client_secret}
    if refresh_token is None:
        form |= {"grant_type": "client_credentials", "scope": "https://outlook.office365.com/.default"}
    else:
        scope = "https://outlook.office.com/SMTP.Send offline_access"
        form |= {"grant_type": "refresh_token", "scope": scope, "refresh_token": refresh_token}
    url = token_url or f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"
    return OAuth2Client(url, form, on_refresh_token=on_refresh_token)


def token_provider(settings: EmailSettings) -> Provider | None:
    """Return the callable of ``xoauth2_token`` or ``xoauth2_token_provider``; None if neither is a provider.

    Raises:
        ImproperlyConfigured: ``xoauth2_token_provider`` does not name a callable.
    """
    path = settings.xoauth2_token_provider
    if path is None:
        given = settings.xoauth2_token
        return None if given is None or isinstance(given, SecretStr) else given
    found = import_string(path, setting='EMAIL["xoauth2_token_provider"]')
    if not callable(found):
        raise ImproperlyConfigured(
            f'EMAIL["xoauth2_token_provider"]: {shown(path)} is a {type(found).__name__}; give a function that '
            "returns a token or (token, expires_in)"
        )
    provider: Provider = found
    return provider


def _checked(result: object) -> tuple[str, float | None]:
    """Return the token and its life in seconds."""
    token, life = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if isinstance(token, SecretStr):
        token = token.get_secret_value()
    if not isinstance(token, str):
        raise _NoTokenError(f"returned a {type(token).__name__}; return a token or (token, expires_in)")
    # The grammar of RFC 6750 section 2.1 is narrower; a space or a control character would end the token in SASL.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise _NoTokenError("returned a token that is empty or has invalid characters")
    if isinstance(life, timedelta):
        life = life.total_seconds()
    if life is not None and (isinstance(life, bool) or not isinstance(life, int | float) or not life > 0):
        raise _NoTokenError(f"returned {shown(life)} as expires_in; return the token's lifetime in seconds")
    return token, life


def _seconds(given: object) -> float | None:
    """Return ``expires_in`` of an answer; some servers send it as a string."""
    if isinstance(given, int | float | str) and not isinstance(given, bool):
        with contextlib.suppress(ValueError):
            seconds = float(given)
            return seconds if 0 < seconds < float("inf") else None
    return None


def _json_object(content: bytes) -> Mapping[str, object]:
    try:
        answer = json.loads(content)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _name(provider: Provider) -> str:
    return type(provider).__name__ if isinstance(provider, OAuth2Client) else function_name(provider)
