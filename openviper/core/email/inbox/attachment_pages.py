"""Show attachments: images as images, text escaped, PDF in a tab of its own, and anything as a download."""

import asyncio
import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.inbox.frame import inline_image, is_image_type
from openviper.core.email.inbox.list_view import ListView
from openviper.core.email.inbox.lookup import attachment_response, entry_or_404, message_or_404
from openviper.core.email.inbox.responses import PageRenderer, as_download, disposition
from openviper.core.email.inbox.store import Store
from openviper.core.email.message.calendar import Calendar

__all__ = ["AttachmentPages", "kind_of"]

_SHOWN = 200_000  # bytes of a text; the download has the rest
_TEXT_TYPE = re.compile(
    r"text/.+|message/.+|application/(?:(?:.+\+)?(?:json|xml)|(?:x-)?(?:javascript|yaml|sh|sql|toml|ndjson))",
    re.IGNORECASE,
)
_PDF_TYPE, _PDF_BEGINNING = "application/pdf", b"%PDF-"

_IMAGE_HEADERS = {
    # An SVG image that is opened as a page must not run scripts either.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}
_PDF_HEADERS = {
    # Browsers show no PDF in a sandbox; their viewers embed the document in a page of their own.
    "Content-Security-Policy": (
        "default-src 'none'; object-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}


def kind_of(part: AttachmentData) -> str:
    """Return how the page shows an attachment: "image", "text" or "pdf"; "" if it can only be downloaded."""
    if is_image_type(part.mimetype):
        return "image"
    if part.mimetype.lower() == _PDF_TYPE:
        return "pdf"
    return "text" if _TEXT_TYPE.fullmatch(part.mimetype) else ""


class AttachmentPages:
    """Routes for the attachments and inline images of the messages in ``store``."""

    def __init__(self, renderer: PageRenderer, store: Store) -> None:
        self._renderer = renderer
        self._store = store
        path = "/{key}/attachments/{index:int}"
        self.routes = [
            Route(path, self._download),
            Route(f"{path}/image", self._image),
            Route(f"{path}/text", self._text),
            Route(f"{path}/pdf", self._pdf),
            Route("/{key}/inline/{name:path}", self._inline),
            Route("/{key}/calendar", self._calendar),
            Route("/{key}/calendar/text", self._calendar_text),
        ]

    async def _download(self, request: Request) -> Response:
        return await attachment_response(self._store, request)

    async def _image(self, request: Request) -> Response:
        part, content = await self._load(request, "image")
        return _image_response(request, content, part.mimetype, part.filename)

    async def _text(self, request: Request) -> Response:
        part, content = await self._load(request, "text")
        file = f"attachments/{request.path_params['index']}"
        return await self._show_text(request, file, part.filename, part.mimetype, content)

    async def _pdf(self, request: Request) -> Response:
        part, content = await self._load(request, "pdf")
        if not content.startswith(_PDF_BEGINNING):
            return as_download(content, part.filename)
        headers = {**_PDF_HEADERS, "Content-Disposition": disposition("inline", part.filename)}
        return Response(content, 200, headers, _PDF_TYPE)

    async def _inline(self, request: Request) -> Response:
        message = await message_or_404(self._store, request)
        found = await asyncio.to_thread(inline_image, message.prepared, request.path_params["name"])
        if found is None:
            raise HTTPException(404, "This message has no such inline image.")
        return _image_response(request, *found, "image")

    async def _calendar(self, request: Request) -> Response:
        calendar = await self._load_calendar(request)
        return as_download(calendar.text.encode(), calendar.filename)

    async def _calendar_text(self, request: Request) -> Response:
        calendar = await self._load_calendar(request)
        content = calendar.text.encode()
        return await self._show_text(request, "calendar", calendar.filename, "text/calendar", content)

    async def _show_text(self, request: Request, file: str, name: str, mimetype: str, content: bytes) -> Response:
        """Render a text with a link to ``file``, its download below the message's path."""
        return await self._renderer.render(
            request,
            "attachment.html",
            key=request.path_params["key"],
            listed=ListView.from_values(request.query_params),
            file=file,
            filename=name,
            mimetype=mimetype,
            size=len(content),
            text=content[:_SHOWN].decode("utf-8-sig", "replace"),
            complete=len(content) <= _SHOWN,
        )

    async def _load_calendar(self, request: Request) -> Calendar:
        calendar = (await entry_or_404(self._store, request)).prepared.calendar
        if calendar is None:
            raise HTTPException(404, "This message has no calendar.")
        return calendar

    async def _load(self, request: Request, kind: str) -> tuple[AttachmentData, bytes]:
        attachments = (await message_or_404(self._store, request)).prepared.attachments
        index = request.path_params["index"]
        if index >= len(attachments) or kind_of(attachments[index]) != kind:
            raise HTTPException(404, f"This message has no such attachment that is shown as {kind}.")
        return attachments[index], await asyncio.to_thread(lambda: attachments[index].content)  # it may be in a file


def _image_response(request: Request, content: bytes, mimetype: str, filename: str) -> Response:
    """Send an image for an ``<img>`` element; as a download where a browser would make it a document."""
    if request.headers.get("sec-fetch-dest", "image") != "image":
        return as_download(content, filename)
    return Response(content, 200, _IMAGE_HEADERS, mimetype)
