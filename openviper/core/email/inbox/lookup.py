"""Look up the message that a request names, and return its source, header fields and attachments."""

import asyncio
from collections.abc import Iterable
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.parser import BytesHeaderParser
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.responses import as_download
from openviper.core.email.inbox.store import Store
from openviper.core.email.message import OutgoingMessage

__all__ = [
    "NOT_KEPT",
    "attachment_response",
    "entry_or_404",
    "header_fields",
    "message_or_404",
    "source_response",
    "source_text",
]

NOT_KEPT = (
    "The content of this message was not kept, because it was sent with sensitive=True: send it again from your "
    "application."
)

T = TypeVar("T")

_SHOWN = 2_000_000  # characters of the source; the download has the rest


async def entry_or_404(store: Store, request: Request) -> Entry:
    """Return the entry that the request's path names.

    Raises:
        HTTPException: 404, the store does not have it.
    """
    return _found(await store.get(request.path_params["key"]))


async def message_or_404(store: Store, request: Request) -> OutgoingMessage:
    """Return the whole message that the request's path names.

    Raises:
        HTTPException: 404, the store does not have it.
    """
    return _found(await store.load(request.path_params["key"]))


async def attachment_response(store: Store, request: Request) -> Response:
    """Send the attachment at the path's ``index`` as a download."""
    attachments = (await message_or_404(store, request)).prepared.attachments
    index = request.path_params["index"]
    if index >= len(attachments):
        raise HTTPException(404, "This message has no such attachment.")
    content = await asyncio.to_thread(lambda: attachments[index].content)  # it may be in a file
    return as_download(content, attachments[index].filename)


async def source_response(store: Store, request: Request) -> Response:
    """Send the message's source as plain text."""
    message = await message_or_404(store, request)
    content = await asyncio.to_thread(b"".join, message.content)
    return Response(content, 200, media_type="text/plain; charset=utf-8")


def header_fields(content: Iterable[bytes]) -> list[tuple[str, str]]:
    """Return each header field's name and value, unfolded and decoded (RFC 2047)."""
    head, _, _ = b"".join(content).partition(b"\r\n\r\n")
    return [(name, _decoded(str(value))) for name, value in BytesHeaderParser().parsebytes(head + b"\r\n\r\n").items()]


def source_text(content: Iterable[bytes]) -> tuple[str, bool]:
    """Return the beginning of the source, and True if that is all of it."""
    source = b"".join(content)
    return source[:_SHOWN].decode("utf-8", "replace"), len(source) <= _SHOWN


def _found(message: T | None) -> T:
    if message is None:
        raise HTTPException(404, "This message is no longer in the inbox, or never was.")
    return message


def _decoded(value: str) -> str:
    unfolded = " ".join(line.strip() for line in value.splitlines())
    try:
        return str(make_header(decode_header(unfolded)))
    except (HeaderParseError, LookupError, ValueError):
        return unfolded
