"""Decide which requests reach the inbox page: by path, by host name, and by origin for changes."""

import re
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

from openviper.network import is_loopback
from openviper.text import shown

__all__ = ["PATH", "is_inbox_path", "path_below_root", "refusal_reason"]

PATH = "/_mail"

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{0,5})?", re.IGNORECASE)


def is_inbox_path(scope: Scope) -> bool:
    """True if the request is for the inbox page, which lies directly below the application's root path."""
    path = path_below_root(scope)
    return scope["type"] == "http" and (path == PATH or path.startswith(f"{PATH}/"))


def path_below_root(scope: Scope) -> str:
    """Return the path without ``root_path``, which some servers include in it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def refusal_reason(request: Request, hosts: frozenset[str]) -> str | None:
    """Return why ``request`` is refused, or None.

    A host name must be this machine's or one of ``hosts`` (``EMAIL["inbox_hosts"]``), against DNS rebinding; a change
    must come from the page itself.
    """
    host = _host_of(request)
    if not is_loopback(host) and host not in hosts:
        return f'The inbox page is not shown for the host name {shown(host)}: add it to EMAIL["inbox_hosts"].\n'
    if request.method not in ("GET", "HEAD") and _is_cross_origin(request):
        return "Only the inbox page itself may change something.\n"
    return None


def _host_of(request: Request) -> str:
    """Return the Host header's name in lower case, without the port; empty if the header is invalid."""
    match = _HOST.fullmatch(request.headers.get("host", ""))
    return match[1].strip("[]").lower() if match else ""


def _is_cross_origin(request: Request) -> bool:
    """True if a request that changes something was not sent by the inbox page itself.

    Browsers send Sec-Fetch-Site or Origin with such a request, and forms can only POST. A request with another method
    and neither header comes from a test or a script, not from a browser.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        return site != "same-origin"
    if origin is None:
        return request.method == "POST"
    netloc = urlsplit(origin).netloc
    return netloc == "" or netloc != request.headers.get("host")
