"""Read the inbox page's own forms, and which failed messages a request means."""

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["chosen_ids", "read_form"]

_MAX_BYTES = 10_000


async def read_form(request: Request) -> Mapping[str, list[str]]:
    """Return the fields of an urlencoded form; each may occur several times.

    Raises:
        HTTPException: 413, the form has more than 10,000 bytes.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BYTES:
            raise HTTPException(413, "This form is too large.")
    return parse_qs(body.decode("utf-8", "replace"))


def chosen_ids(given: Iterable[str], *, everything: bool) -> frozenset[str] | None:
    """Return the Message-IDs that a request names, with their angle brackets; None: all.

    Raises:
        HTTPException: 400, the request names neither messages nor all of them, or both.
    """
    message_ids = frozenset(f"<{one.strip('<>')}>" for one in given)
    if everything == bool(message_ids):
        raise HTTPException(400, "Give either the failed messages' ids or all=1.")
    return None if everything else message_ids
