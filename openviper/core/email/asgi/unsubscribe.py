"""Answer one-click unsubscribe (RFC 8058): a page with a button for readers, a POST for their mailbox providers."""

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from openviper.core.email.delivery import current_settings
from openviper.core.email.delivery.suppression import describe_failure, suppress_address
from openviper.core.email.inbox.guard import path_below_root
from openviper.core.email.message import UnsubscribeRequest
from openviper.core.email.message.unsubscribe import UNSUBSCRIBE_PATH, read_token
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import accepts, call_function
from openviper.text import function_name, shown

__all__ = ["UnsubscribeEndpoint"]

logger = logging.getLogger("openviper.email")

_MAX_BYTES = 4096
_MAX_FIELDS = 20
_FIELD = ("List-Unsubscribe", "One-Click")
_BOUNDARY = re.compile(r';[ \t]*boundary=(?:"([^"\\]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_NAME = re.compile(
    rb'\r\nContent-Disposition:[ \t]*form-data[ \t]*;[ \t]*name="?List-Unsubscribe"?[ \t]*(?:[;\r]|$)', re.IGNORECASE
)

_HEADERS = {
    "Cache-Control": "no-store",
    # No script: none may press the button for a scanner that renders pages.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif; }}
main {{ max-width: 30rem; margin: 20vh auto 0; padding: 0 1rem; }}
button {{ font: inherit; padding: .5em 1.2em; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
</body>
</html>
"""
_FORM = """\
<p>Do you want to stop receiving these emails?</p>
<form method="post">
<input type="hidden" name="List-Unsubscribe" value="One-Click">
<button>Unsubscribe</button>
</form>"""


class _RefusedError(Exception):
    """A request that is answered with ``status`` and changes nothing."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UnsubscribeEndpoint:
    """One-click unsubscribe as an ASGI application: ``app.mount("/unsubscribe", UnsubscribeEndpoint())``.

    For OpenViper it is an extension: ``app.add_extension(UnsubscribeEndpoint())``. GET shows a page with a button and
    changes nothing, because scanners fetch every link in a message. POST, from the button or from a mailbox provider,
    unsubscribes; an unknown link or a repeated request gets the same answer.

    Args:
        on_unsubscribe: Function that stops the mail, either async, or plain and run in a thread. If it raises, the
            answer is 503. None adds the address, for the message's stream, to the suppression table of
            ``openviper.db``.
        page: Function that returns a page's HTML. Called with False, it returns the page with the button, a form
            without an action and with the field ``List-Unsubscribe``; called with True, the page that follows. None:
            pages in English.

    Raises:
        ImproperlyConfigured: an argument is not a function, or is a function that takes other arguments.
    """

    name = "unsubscribe"

    def __init__(
        self,
        on_unsubscribe: Callable[[UnsubscribeRequest], Any] | None = None,
        *,
        page: Callable[[bool], str] | None = None,
    ) -> None:
        given: dict[str, Any] = {"on_unsubscribe": on_unsubscribe, "page": page}
        for argument, function in given.items():
            if function is not None and not (callable(function) and accepts(function, 1)):
                raise ImproperlyConfigured(
                    f"UnsubscribeEndpoint({argument}=): {shown(function)} is not a function of one argument"
                )
        self._on_unsubscribe = on_unsubscribe
        self._page = page or _default_page

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return ``app`` with this endpoint in front of it, outside its middleware such as CSRF protection."""

        async def in_front(scope: Scope, receive: Receive, send: Send) -> None:
            below = path_below_root(scope) if scope["type"] == "http" else ""
            chosen = self if below.startswith(f"{UNSUBSCRIBE_PATH}/") else app
            await chosen(scope, receive, send)

        return in_front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["type"] != "http":
            raise RuntimeError(f"UnsubscribeEndpoint answers requests, not the scope {shown(scope['type'])}")
        try:
            response = await self._answer(Request(scope, receive))
        except _RefusedError as refused:
            response = HTMLResponse(_write_page(str(refused)), refused.status, _HEADERS)
            if refused.status == 405:
                response.headers["Allow"] = "GET, HEAD, POST"
        except ClientDisconnect:
            return
        if scope["method"] == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> HTMLResponse:
        if request.method not in ("GET", "HEAD", "POST"):
            raise _RefusedError(405, "Method not allowed")
        keys = [key.get_secret_value() for key in current_settings().unsubscribe_keys]
        if not keys:  # without them a valid link could not be told from an unknown one
            logger.error('EMAIL["unsubscribe_keys"]: is empty, so that no link can be verified; set those that sign')
            raise _RefusedError(503, "Please try again later")
        if request.method == "POST":
            await _check_form(request)
            token = request.scope["path"].rstrip("/").rpartition("/")[2]
            await self._unsubscribe(read_token(token, keys))
        return HTMLResponse(self._page(request.method == "POST"), 200, _HEADERS)

    async def _unsubscribe(self, asked: UnsubscribeRequest | None) -> None:
        if asked is None:
            logger.info(
                'an unsubscribe link was not signed by any key in EMAIL["unsubscribe_keys"], and nothing changed'
            )
            return
        # Neither the recipient nor the text of an error, which may name it, may stand in a log.
        failure = ""
        try:
            if self._on_unsubscribe is not None:
                await call_function(self._on_unsubscribe, asked)
            elif asked.address is not None:
                await suppress_address(asked.address, "unsubscribed", asked.stream)
            else:
                failure = "the link has a recipient_id; give UnsubscribeEndpoint(on_unsubscribe=...)"
        except Exception as error:  # noqa: BLE001 - the function is the user's code
            failure = f"{function_name(self._on_unsubscribe or suppress_address)} {describe_failure(error)}"
        if failure:
            logger.error("a reader could not be unsubscribed from the stream %s: %s", asked.stream, failure)
            raise _RefusedError(503, "Please try again later")
        logger.info("a reader unsubscribed from the stream %s", asked.stream)


async def _check_form(request: Request) -> None:
    """Read the form, and require the field of RFC 8058 section 3.2.

    Raises:
        _RefusedError: it is of another type, too large, or lacks the field.
    """
    kind = request.headers.get("content-type", "")
    media_type = kind.partition(";")[0].strip().lower()
    if media_type not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        raise _RefusedError(415, "Unsupported media type")
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BYTES:
            raise _RefusedError(413, "Request too large")
    boundary = _BOUNDARY.search(kind)
    if media_type == "multipart/form-data":
        found = boundary is not None and _has_part(body, (boundary[1] or boundary[2]).encode("latin-1"))
    else:
        found = _has_field(body)
    if not found:
        raise _RefusedError(400, "This is not an unsubscribe request")


def _has_field(body: bytes) -> bool:
    try:
        return _FIELD in parse_qsl(body.decode("latin-1").strip(), max_num_fields=_MAX_FIELDS)
    except ValueError:
        return False


def _has_part(body: bytes, boundary: bytes) -> bool:
    """True if a part of a multipart form (RFC 7578) is the field."""
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if _NAME.search(head) and content.strip() == _FIELD[1].encode():
            return True
    return False


def _default_page(done: bool) -> str:
    if done:
        return _write_page("You are unsubscribed", "<p>You will no longer receive these emails.</p>")
    return _write_page("Unsubscribe", _FORM)


def _write_page(title: str, content: str = "") -> str:
    return _PAGE.format(title=title, content=content)
