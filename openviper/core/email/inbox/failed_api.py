"""The inbox's JSON API for dead letters."""

from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.inbox.api_reference import make_routes
from openviper.core.email.inbox.dead_letters import Action, DeadLetter, DeadLetters
from openviper.core.email.inbox.forms import chosen_ids
from openviper.core.email.inbox.responses import as_json
from openviper.exceptions import MissingDependency
from openviper.text import shown

__all__ = ["FailedApi"]

_NO_BROKER = 'mail is not queued: set TASKS["broker"] to "redis" or "rabbitmq"'


class FailedApi:
    """Routes at ``/api/failed``. Retrying is a PUT, which no form of a browser can send."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters
        self.routes = make_routes(
            {
                ("GET", "/api/failed"): self._list,
                ("DELETE", "/api/failed"): self._purge,
                ("PUT", "/api/failed/retry"): self._retry,
            }
        )

    async def _list(self, _request: Request) -> Response:
        try:
            found = await self._letters.read()
        except (QueueUnavailable, MissingDependency) as error:
            return await as_json({"error": str(error)}, 503)
        if found is None:
            return await as_json({"broker": None, "total": 0, "messages": []})
        messages = [_summary(letter) for letter in found.letters]
        return await as_json({"broker": found.broker, "total": found.total, "messages": messages})

    async def _retry(self, request: Request) -> Response:
        return await self._change(request, "retry")

    async def _purge(self, request: Request) -> Response:
        return await self._change(request, "purge")

    async def _change(self, request: Request, action: Action) -> Response:
        everything = request.query_params.getlist("all")
        for given in everything:
            if given != "1":
                raise HTTPException(400, f"all: must be 1, not {shown(given)}")
        message_ids = chosen_ids(request.query_params.getlist("id"), everything=bool(everything))
        try:
            result = await self._letters.change(action, message_ids)
        except (QueueUnavailable, MissingDependency) as error:
            return await as_json({"error": str(error)}, 503)
        if result is None:
            return await as_json({"error": _NO_BROKER}, 409)
        return await as_json(
            {"count": result.changed}
            if action == "purge"
            else {"count": result.changed, "content_dropped": result.dropped}
        )


def _summary(letter: DeadLetter) -> dict[str, Any]:
    job, head = letter
    return {
        "message_id": job.message_id,
        "failed_at": datetime.fromtimestamp(job.failed_at, UTC).isoformat(),
        "reason": job.reason,
        "mailer": job.mailer,
        "perhaps_delivered": job.uncertain,
        "content_dropped": job.content_dropped,
        "attempts": job.progress.attempts,
        "subject": head["Subject"],
        "from": head["From"],
        "to": head["To"],
        "cc": head["Cc"],
        "bcc": head["Bcc"],
        "refused": dict(job.progress.refused),
        "unconfirmed": dict(job.progress.unconfirmed),
        "protocol": job.protocol,
    }
