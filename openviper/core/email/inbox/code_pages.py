"""The inbox's pages about previews in code, with ``DEBUG`` only, because they run the project's functions."""

import asyncio
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.errors import EmailError, TemplateFailed
from openviper.core.email.inbox.entries import key_of
from openviper.core.email.inbox.forms import read_form
from openviper.core.email.inbox.frame import (
    SANDBOX,
    VALUE,
    choice,
    frame_choices,
    framed_response,
    html_version,
    inline_image,
)
from openviper.core.email.inbox.lint import lint_prepared
from openviper.core.email.inbox.responses import PageRenderer, as_download
from openviper.core.email.lint.remote_content import remote_content
from openviper.core.email.message import PreparedMessage
from openviper.core.email.sending.previews import CodePreview, PreviewedMail, load_previews, render_preview
from openviper.core.email.sending.single import submit_email
from openviper.core.email.settings import debug
from openviper.exceptions import OpenViperError
from openviper.text import error_origin, shown

__all__ = ["CodePages"]

_TABS = {"html": "HTML", "text": "Text", "check": "Check"}
_EDITABLE = (str, bool, int, float)
_CID = re.compile(r"cid:([^\s\"'<>)\\]{1,250})", re.IGNORECASE)


@dataclass(slots=True)
class _Shown:
    """A preview with the values that the request chooses, and its message or the error that prevents it.

    ``preview`` is None if its module cannot be imported; ``template`` is the message's template, or empty.
    """

    name: str
    preview: CodePreview | None = None
    variant: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    mail: PreviewedMail | None = None
    template: str = ""
    error: str = ""
    fields: list[tuple[str, Any]] = field(default_factory=list)


class CodePages:
    """Routes at ``/previews`` and for the previews' parts."""

    def __init__(self, renderer: PageRenderer, mailer: Mailer) -> None:
        self._renderer = renderer
        self._mailer = mailer
        self.routes = [
            Route("/previews/{name}", self._show),
            Route("/preview-html/{name}", self._html),
            Route("/preview-attachment/{name}/{index:int}", self._attachment),
            Route("/preview-send/{name}", self._send, methods=["POST"]),
        ]

    async def listed(self) -> tuple[list[CodePreview], str]:
        """Return the previews of ``EMAIL["mails"]``, and the errors that keep modules from being imported or empty."""
        return await asyncio.to_thread(self._load) if debug() else ([], "")

    def _load(self) -> tuple[list[CodePreview], str]:
        found: dict[str, CodePreview] = {}
        errors: list[str] = []
        for module in self._mailer.settings.mails:
            try:
                found.update((one.name, one) for one in load_previews([module]))
            except Exception as error:  # noqa: BLE001 - whatever the project's modules raise, the page must show it
                errors.append(_described(error))
        return list(found.values()), "; ".join(errors)

    async def _show(self, request: Request) -> Response:
        return await self._page(request, await self._render(request))

    async def _html(self, request: Request) -> Response:
        found = await self._render(request)
        if found.mail is None or found.mail.message.html is None:
            raise HTTPException(404, found.error or "This preview has no HTML part.")
        html = await asyncio.to_thread(_with_images, found.mail.message)
        return await framed_response(request, html, f"{request.scope['root_path']}/template-inline/")

    async def _attachment(self, request: Request) -> Response:
        found = await self._render(request)
        parts = () if found.mail is None else found.mail.message.attachments
        index = request.path_params["index"]
        if index >= len(parts):
            raise HTTPException(404, found.error or "This preview has no such attachment.")
        content = await asyncio.to_thread(lambda: parts[index].content)
        return as_download(content, parts[index].filename)

    async def _send(self, request: Request) -> Response:
        found = await self._render(request)
        to = (await read_form(request)).get("to", [""])[0]
        if found.mail is None:
            return await self._page(request, found, status=422)
        message = found.mail.message
        try:
            with using_mailer(self._mailer):
                receipt = await submit_email(
                    to,
                    message.subject,
                    message.text,
                    message.html,
                    attachments=message.attachments,
                    fail_silently=True,
                    sender=message.sender,
                )
        except (EmailError, OpenViperError) as error:
            return await self._page(request, found, problem=str(error), to=to, status=422)
        return RedirectResponse(f"{request.scope['root_path']}/{key_of(receipt.message_id)}", 303)

    async def _render(self, request: Request) -> _Shown:
        """Call the preview that the path names.

        Raises:
            HTTPException: 404, there is no such preview, or ``DEBUG`` is off; 403, another site requests it.
        """
        if not debug():
            raise HTTPException(404, "Previews in code need DEBUG.")
        # The function is the project's own code, and its values are in the URL, which another site could choose.
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise HTTPException(403, "Only the inbox page itself may show a preview in code.")
        previews, error = await self.listed()
        name = request.path_params["name"]
        found = next((one for one in previews if one.name == name), None)
        if found is None and error:
            return _Shown(name, error=error)
        if found is None:
            raise HTTPException(404, 'There is no such preview in the modules of EMAIL["mails"].')
        variant = request.query_params.get("variant", "")
        result = _Shown(name, found, variant, {**found.values, **found.variants.get(variant, {})})
        given, result.error = _given(request.query_params, result.values)
        result.values.update(given)
        result.fields = [(key, value) for key, value in result.values.items() if isinstance(value, _EDITABLE)]
        if result.error:
            return result
        try:
            result.mail = await render_preview(self._mailer, found, result.values)
            result.template = result.mail.template or ""
        except Exception as raised:  # noqa: BLE001 - whatever the project's function raises, the page must show it
            result.error = _described(raised)
            result.template = raised.template if isinstance(raised, TemplateFailed) else ""
        return result

    async def _page(
        self, request: Request, found: _Shown, *, problem: str = "", to: str = "", status: int = 200
    ) -> Response:
        message = None if found.mail is None else found.mail.message
        views = {
            name: label
            for name, label in _TABS.items()
            if message is not None and (name == "check" or getattr(message, name))
        }
        targets = self._mailer.settings.target_clients
        report = None if message is None else await asyncio.to_thread(lint_prepared, message, targets)
        return await self._renderer.render(
            request,
            "code_preview.html",
            status,
            shown=found,
            message=message,
            sizes=[] if message is None else [part.size for part in message.attachments],
            views=views,
            report=report,
            view=choice(request, "view", views) if views else "",
            path=quote(found.name),
            version="" if message is None else html_version(await asyncio.to_thread(_with_images, message)),
            sandbox=SANDBOX,
            has_remote=await asyncio.to_thread(remote_content, (message and message.html) or ""),
            problem=problem,
            to=to,
            value_prefix=VALUE,
            **frame_choices(request),
        )


def _given(parameters: Mapping[str, str], values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the values that the URL changes, each of its parameter's type, and which are not of it, or empty."""
    given: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in values.items():
        text = parameters.get(VALUE + name)
        if text is None or not isinstance(value, _EDITABLE):
            continue
        if isinstance(value, bool):
            given[name] = text == "true"
            continue
        try:
            given[name] = type(value)(text)
        except ValueError:
            wrong.append(f"{name}: must be a number, not {shown(text)}")
    return given, "; ".join(wrong)


def _with_images(message: PreparedMessage) -> str:
    """Return the HTML with its inline images as ``data:`` URLs, since each request calls the function again."""

    def data_url(match: re.Match[str]) -> str:
        found = inline_image(message, match[1])
        if found is None:
            return match[0]
        return f"data:{found[1]};base64,{base64.b64encode(found[0]).decode()}"

    return _CID.sub(data_url, message.html or "")


def _described(error: Exception) -> str:
    if isinstance(error, EmailError | OpenViperError):
        return str(error)
    return f"{error} ({error_origin(error)})"
