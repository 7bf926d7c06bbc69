"""The pages about templates."""

import asyncio
from urllib.parse import parse_qs, quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.errors import EmailError
from openviper.core.email.inbox.frame import SANDBOX
from openviper.core.email.inbox.live import Live
from openviper.core.email.inbox.markup import remote_content
from openviper.core.email.inbox.previews import Preview, list_templates, preview, signature
from openviper.core.email.inbox.responses import Pages
from openviper.core.email.inbox.store import key_of
from openviper.core.email.inbox.views import choice, frame_choices, framed
from openviper.core.email.sending.single import submit_email
from openviper.core.email.settings import debug
from openviper.exceptions import OpenViperError

__all__ = ["TemplateViews"]

_TABS = {"html": "HTML", "text": "Text", "values": "Values"}
_LONGEST_FORM = 10_000


class TemplateViews:
    """The list of templates, and each one's preview."""

    def __init__(self, pages: Pages, mailer: Mailer, live: Live) -> None:
        self._pages = pages
        self._mailer = mailer
        self._live = live
        self.routes = [
            Route("/templates", self._list),
            Route("/templates/{name:path}", self._preview),
            Route("/template-html/{name:path}", self._html),
            Route("/template-inline/{name:path}", self._inline),
            Route("/template-events/{name:path}", self._events),
            Route("/template-send/{name:path}", self._send, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        templates = await asyncio.to_thread(list_templates, self._mailer.renderer)
        mail = [template for template in templates if template.mail]
        others = [template for template in templates if not template.mail]
        return await self._pages.page(request, "templates.html", mail=mail or others, others=others if mail else [])

    async def _preview(self, request: Request) -> Response:
        return await self._page(request, await preview(self._mailer.renderer, request.path_params["name"]))

    async def _page(
        self, request: Request, shown: Preview, *, problem: str = "", to: str = "", status: int = 200
    ) -> Response:
        rendered = shown.rendered
        views = {
            name: label
            for name, label in _TABS.items()
            if name == "values" or (rendered is not None and getattr(rendered, name) is not None)
        }
        return await self._pages.page(
            request,
            "preview.html",
            status,
            preview=shown,
            rendered=rendered,
            views=views,
            view=choice(request, "view", views),
            path=quote(shown.name),
            sandbox=SANDBOX,
            elsewhere=await asyncio.to_thread(remote_content, (rendered and rendered.html) or ""),
            may_send=debug() and rendered is not None,
            problem=problem,
            to=to,
            **frame_choices(request),
        )

    async def _html(self, request: Request) -> Response:
        shown = await preview(self._mailer.renderer, request.path_params["name"])
        if shown.rendered is None or shown.rendered.html is None:
            raise HTTPException(404, shown.error or "This template has no HTML part.")
        return await framed(request, shown.rendered.html, f"{request.scope['root_path']}/template-inline/")

    async def _inline(self, _request: Request) -> Response:
        """A stand-in for every inline image: which ones there are, only the call that sends the template says."""
        return self._pages.file("image.svg")

    async def _events(self, request: Request) -> Response:
        """Says that a file of the template has changed."""
        renderer, name = self._mailer.renderer, request.path_params["name"]
        return await self._live.watch(lambda: signature(renderer, name))

    async def _send(self, request: Request) -> Response:
        if not debug():
            raise HTTPException(404, "Templates are sent only while DEBUG is on.")
        shown = await preview(self._mailer.renderer, request.path_params["name"])
        to = await _address(request)
        if shown.rendered is None:
            return await self._page(request, shown, status=422)
        try:
            with using_mailer(self._mailer):
                receipt = await submit_email(
                    to,
                    shown.rendered.subject or f"Preview of {shown.name}",
                    shown.rendered.text,
                    shown.rendered.html,
                    fail_silently=True,
                )
        except (EmailError, OpenViperError) as error:
            return await self._page(request, shown, problem=str(error), to=to, status=422)
        return RedirectResponse(f"{request.scope['root_path']}/{key_of(receipt.message_id)}", 303)


async def _address(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_FORM:
            raise HTTPException(413, "The form is too long.")
    return parse_qs(body.decode("utf-8", "replace")).get("to", [""])[0]
