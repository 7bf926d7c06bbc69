"""A small OpenViper-style framework slice around ``openviper.core.email``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response

    from openviper.app import OpenViper

__version__ = "0.1.0"

__all__ = ["HTMLResponse", "HTTPException", "JSONResponse", "OpenViper", "Request", "Response", "__version__"]

_LAZY = {
    "HTMLResponse": "starlette.responses",
    "HTTPException": "starlette.exceptions",
    "JSONResponse": "starlette.responses",
    "OpenViper": "openviper.app",
    "Request": "starlette.requests",
    "Response": "starlette.responses",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that importing openviper.core.email imports neither Starlette nor the application class.
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(module), name)
    return value
