"""A small OpenViper-style web framework around ``openviper.core.email``."""

from typing import TYPE_CHECKING

from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response

    from openviper.app import OpenViper
else:
    # Importing openviper.core.email must import neither Starlette nor the application class.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "HTMLResponse": "starlette.responses",
            "HTTPException": "starlette.exceptions",
            "JSONResponse": "starlette.responses",
            "OpenViper": "openviper.app",
            "Request": "starlette.requests",
            "Response": "starlette.responses",
        },
    )

__version__ = "0.1.0"

__all__ = ["HTMLResponse", "HTTPException", "JSONResponse", "OpenViper", "Request", "Response", "__version__"]
