"""Which requests reach the inbox page: its address, the host names it answers to, and who may change something."""

import re
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

__all__ = ["PATH", "host_of", "is_foreign", "is_inbox_path", "path_below_root"]

PATH = "/_mail"

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{0,5})?", re.IGNORECASE)


def is_inbox_path(scope: Scope) -> bool:
    """Whether a request is for the inbox page, which lies directly under the application's root path."""
    path = path_below_root(scope)
    return scope["type"] == "http" and (path == PATH or path.startswith(f"{PATH}/"))


def path_below_root(scope: Scope) -> str:
    """The path without ``root_path``, whether or not the server has put that before it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def host_of(request: Request) -> str:
    """The name in the Host header, lower case, without the port; empty if it is none."""
    match = _HOST.fullmatch(request.headers.get("host", ""))
    return match[1].strip("[]").lower() if match else ""


def is_foreign(request: Request) -> bool:
    """Whether a request that changes something comes from elsewhere than the inbox page.

    Browsers say where such a request comes from, and a form can only POST. What says nothing and uses another method
    is no browser but a test or a script on this machine.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        return site != "same-origin"
    if origin is None:
        return request.method == "POST"
    netloc = urlsplit(origin).netloc
    return netloc == "" or netloc != request.headers.get("host")
