"""Answer a load balancer or a monitor that asks whether mail works."""

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from openviper.core.email.delivery import health

__all__ = ["HealthEndpoint"]

_OK, _NOT_ALLOWED, _UNAVAILABLE = 200, 405, 503
_WEBSOCKET_POLICY = 1008  # RFC 6455 section 7.4.1


class HealthEndpoint:
    """An ASGI application that answers GET and HEAD with :func:`health` as JSON.

    The status is 200 for "ok" and "degraded", and 503 only for "failing": a mail server that is down must not take the
    application out of the load balancer. The body is only ``{"status": ...}``; ``details`` adds problems and stats, for
    a URL that only you can reach. In Starlette, FastAPI and OpenViper: ``Route("/health/mail", HealthEndpoint())``,
    since a mounted application redirects to the path with a slash.
    """

    def __init__(self, *, details: bool = False) -> None:
        self._details = details

    # Every framework has its own types for the three arguments.
    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ARG002
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _WEBSOCKET_POLICY})
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(scope, send, _NOT_ALLOWED, {"error": "use GET"}, (b"allow", b"GET, HEAD"))
            return
        found = await health()
        status = _UNAVAILABLE if found.status == "failing" else _OK
        await _answer(scope, send, status, found.to_dict(details=self._details))


async def _answer(
    scope: Mapping[str, Any], send: Any, status: int, values: Mapping[str, Any], *headers: tuple[bytes, bytes]
) -> None:
    body = json.dumps(values).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
