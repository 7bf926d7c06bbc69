"""The inbox page as an ASGI application."""

from collections.abc import Sequence
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send

from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.pause.state import Pause
from openviper.core.email.inbox.api import Api
from openviper.core.email.inbox.api_reference import ROUTES, TABLES
from openviper.core.email.inbox.attachment_pages import AttachmentPages
from openviper.core.email.inbox.code_pages import CodePages
from openviper.core.email.inbox.dead_letters import DeadLetters
from openviper.core.email.inbox.failed_api import FailedApi
from openviper.core.email.inbox.failed_pages import FailedPages
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.inbox.folder_store import FolderStore
from openviper.core.email.inbox.guard import PATH, path_below_root, refusal_reason
from openviper.core.email.inbox.live import Live
from openviper.core.email.inbox.message_pages import MessagePages
from openviper.core.email.inbox.release import ReleasePages
from openviper.core.email.inbox.responses import GuardedSend, PageRenderer, as_json
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.store import MemoryStore, Store
from openviper.core.email.inbox.template_pages import TemplatePages
from openviper.core.email.message.origin import record_origins
from openviper.core.email.settings import EmailSettings

__all__ = ["Inbox", "make_store"]

_FAILED = "The inbox page failed to answer: see the server's log for the error.\n"


class Inbox:
    """Shows the messages that this process sends while the inbox is open, or with ``inbox_dir`` all those stored there.

    Answers only if the Host header names this machine or is listed in ``EMAIL["inbox_hosts"]``, so that a foreign name
    which resolves here cannot read mail (DNS rebinding). Changes must be requested by the page itself. ``mailer`` sends
    for the page's buttons. ``store`` records from now on, and is closed with the page.
    """

    def __init__(self, mailer: Mailer, store: Store) -> None:
        self._hosts = frozenset(host.lower() for host in mailer.settings.inbox_hosts or ())
        self._store = store
        self._unfollow = self._store.follow()
        self._end_origins = record_origins()
        self._renderer = PageRenderer(partial(_pauses, mailer))
        live = Live(self._store)
        letters = DeadLetters()
        searcher = Searcher()
        code = CodePages(self._renderer, mailer)
        self._router = Router(
            [
                Route("/inbox.css", self._file),
                Route("/inbox.js", self._file),
                Route("/icon.svg", self._file),
                Route("/events", live.stream),
                Route("/api", self._api_page),
                *Api(self._store, live, searcher).routes,
                *FailedApi(letters).routes,
                *FailedPages(self._renderer, letters, mailer.settings).routes,
                *code.routes,
                *TemplatePages(self._renderer, mailer, live, code).routes,
                *AttachmentPages(self._renderer, self._store).routes,
                *ReleasePages(self._renderer, self._store, mailer).routes,
                *MessagePages(self._renderer, self._store, searcher, mailer).routes,
            ],
            redirect_slashes=False,
            default=_not_found,
        )

    async def open(self) -> None:
        """Read the files of the inbox's own pages."""
        await self._renderer.open()

    async def aclose(self) -> None:
        """Stop recording and close the store."""
        self._unfollow()
        self._end_origins()
        await self._store.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = GuardedSend(send)
        reason = refusal_reason(Request(scope), self._hosts)
        if reason is not None:
            await PlainTextResponse(reason, 403)(scope, receive, guarded)
            return
        try:
            await self._answer(scope, receive, guarded)
        except Exception:
            # As Starlette does it: the response is ours, with its guards, and the server logs the traceback.
            if not guarded.started:
                await PlainTextResponse(_FAILED, 500)(scope, receive, guarded)
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.open()
        base = scope.get("root_path", "") + PATH
        below = path_below_root(scope)[len(PATH) :] or "/"
        # The handlers of an application around this one are for its own errors.
        own = {"app": self, "starlette.exception_handlers": ({}, {}), "root_path": base, "path": base + below}
        scope = {**scope, **own}
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            await (await self._problem(Request(scope), error))(scope, receive, send)

    async def _problem(self, request: Request, error: HTTPException) -> Response:
        status, text, headers = error.status_code, error.detail, {}
        allowed = self._allowed_methods(request)
        # A path for POST alone, such as /clear, is with GET taken for the key of a message that does not exist.
        if status == 405 or (status == 404 and allowed and request.method not in allowed):
            methods = ", ".join(allowed)
            status, text = 405, f"{request.method} is not allowed here (allowed: {methods})."
            headers = {"Allow": methods}
        if request.scope["path"].startswith(f"{request.scope['root_path']}/api/"):
            response = await as_json({"error": text}, status)
        else:
            response = await self._renderer.render(request, "problem.html", status, text=text)
        response.headers.update(headers)
        return response

    def _allowed_methods(self, request: Request) -> list[str]:
        """Return the methods of the first path that matches the requested one; empty if none does."""
        routes = [route for route in self._router.routes if isinstance(route, Route)]
        path = next((route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE), None)
        return sorted({each for route in routes if route.path == path for each in route.methods or ()})

    async def _api_page(self, request: Request) -> Response:
        return await self._renderer.render(request, "api.html", routes=ROUTES, tables=TABLES)

    async def _file(self, request: Request) -> Response:
        return self._renderer.file(request.scope["path"].rpartition("/")[2])


def _pauses(mailer: Mailer) -> Sequence[Pause]:
    watch = mailer.transport.pause
    return () if watch is None else watch.find_all()


async def _not_found(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise HTTPException(404, "This page does not exist.")


def make_store(settings: EmailSettings, *, sensitive: bool) -> Store:
    """Return the store that the settings choose: in memory, or in the folder ``inbox_dir``.

    ``sensitive`` True shows messages that were sent with ``sensitive=True`` whole.
    """
    if settings.inbox_dir is None:
        return MemoryStore(sensitive=sensitive)
    return FolderStore(Folder(settings.inbox_dir), sensitive=sensitive)
