"""The inbox's pages about templates: the list, and each template's preview."""

import asyncio
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.errors import EmailError
from openviper.core.email.inbox.code_pages import CodePages
from openviper.core.email.inbox.entries import key_of
from openviper.core.email.inbox.forms import read_form
from openviper.core.email.inbox.frame import SANDBOX, choice, frame_choices, framed_response
from openviper.core.email.inbox.lint import lint_template
from openviper.core.email.inbox.live import Live
from openviper.core.email.inbox.previews import Preview, list_templates, preview, signature
from openviper.core.email.inbox.responses import PageRenderer
from openviper.core.email.lint.remote_content import remote_content
from openviper.core.email.sending.single import submit_email
from openviper.core.email.settings import debug
from openviper.exceptions import OpenViperError

__all__ = ["TemplatePages"]

_TABS = {"html": "HTML", "text": "Text", "values": "Values", "check": "Check"}


class TemplatePages:
    """Routes at ``/templates`` and for the previews' parts."""

    def __init__(self, renderer: PageRenderer, mailer: Mailer, live: Live, code: CodePages) -> None:
        self._renderer = renderer
        self._mailer = mailer
        self._live = live
        self._code = code
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
        previews, problem = await self._code.listed()
        mail = [template for template in templates if template.mail]
        others = [template for template in templates if not template.mail]
        return await self._renderer.render(
            request,
            "templates.html",
            mail=mail or others,
            others=others if mail else [],
            previews=previews,
            problem=problem,
        )

    async def _preview(self, request: Request) -> Response:
        return await self._page(request, await self._rendered(request))

    async def _rendered(self, request: Request) -> Preview:
        """Render the template that the path names, with the values of the URL, if they may be edited."""
        values = request.query_params.get("values") if debug() else None
        return await preview(self._mailer.renderer, request.path_params["name"], values=values)

    async def _page(
        self, request: Request, shown: Preview, *, problem: str = "", to: str = "", status: int = 200
    ) -> Response:
        rendered = shown.rendered
        views = {
            name: label
            for name, label in _TABS.items()
            if name == "check"
            or (name == "values" and shown.readable)
            or (name in ("text", "html") and rendered is not None and (name == "text" or rendered.html is not None))
        }
        return await self._renderer.render(
            request,
            "preview.html",
            status,
            preview=shown,
            rendered=rendered,
            report=await asyncio.to_thread(lint_template, shown, self._mailer.settings.target_clients),
            views=views,
            view=choice(request, "view", views),
            path=quote(shown.name),
            sandbox=SANDBOX,
            has_remote=await asyncio.to_thread(remote_content, (rendered and rendered.html) or ""),
            text_derived=rendered is not None and rendered.text is None,
            editable=debug(),
            may_send=debug() and rendered is not None,
            problem=problem,
            to=to,
            **frame_choices(request),
        )

    async def _html(self, request: Request) -> Response:
        shown = await self._rendered(request)
        if shown.rendered is None or shown.rendered.html is None:
            raise HTTPException(404, shown.error or "This template has no HTML part.")
        return await framed_response(request, shown.rendered.html, f"{request.scope['root_path']}/template-inline/")

    async def _inline(self, _request: Request) -> Response:
        """Send a placeholder for any inline image, because only the sending call attaches the real one."""
        return self._renderer.file("image.svg")

    async def _events(self, request: Request) -> Response:
        """Stream an event after each change to the template's files."""
        renderer, name = self._mailer.renderer, request.path_params["name"]
        return await self._live.watch(lambda: signature(renderer, name))

    async def _send(self, request: Request) -> Response:
        if not debug():
            raise HTTPException(404, "Sending templates needs DEBUG.")
        shown = await self._rendered(request)
        to = (await read_form(request)).get("to", [""])[0]
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
