"""The inbox's page about dead letters: list, reasons, and buttons to retry and delete them."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.inbox.dead_letters import Action, DeadLetters
from openviper.core.email.inbox.forms import chosen_ids, read_form
from openviper.core.email.inbox.responses import PageRenderer
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import MissingDependency

__all__ = ["FailedPages"]


class FailedPages:
    """Routes at ``/failed``. A change answers with a redirect, so that reloading does not repeat it."""

    def __init__(self, renderer: PageRenderer, letters: DeadLetters, settings: EmailSettings) -> None:
        self._renderer = renderer
        self._letters = letters
        self._keep = settings.failed_keep
        self.routes = [
            Route("/failed", self._list),
            Route("/failed/retry", self._retry, methods=["POST"]),
            Route("/failed/purge", self._purge, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        try:
            found = await self._letters.read()
        except (QueueUnavailable, MissingDependency) as error:
            return await self._problem(request, error)
        return await self._renderer.render(
            request,
            "failed.html",
            found=found,
            keep_days=self._keep / 86400,
            retried=_count(request, "retried"),
            purged=_count(request, "purged"),
            dropped=_count(request, "dropped"),
        )

    async def _retry(self, request: Request) -> Response:
        return await self._change(request, "retry")

    async def _purge(self, request: Request) -> Response:
        return await self._change(request, "purge")

    async def _change(self, request: Request, action: Action) -> Response:
        form = await read_form(request)
        message_ids = chosen_ids(form.get("id", []), everything=form.get("all") == ["1"])
        try:
            result = await self._letters.change(action, message_ids)
        except (QueueUnavailable, MissingDependency) as error:
            return await self._problem(request, error)
        done = {"retry": "retried", "purge": "purged"}[action]
        count, dropped = (0, 0) if result is None else result
        more = f"&dropped={dropped}" if dropped else ""
        return RedirectResponse(f"{request.scope['root_path']}/failed?{done}={count}{more}", 303)

    async def _problem(self, request: Request, error: Exception) -> Response:
        return await self._renderer.render(request, "failed.html", 503, problem=str(error))


def _count(request: Request, name: str) -> int | None:
    """Return the number that the URL gives for the notice, or None."""
    given = request.query_params.get(name, "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 10 else None
