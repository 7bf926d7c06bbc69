"""Responses for browsers: pages and redirects, with their common headers."""

from typing import Any

from openviper import HTMLResponse, HTTPException, Request, Response
from openviper.conf import settings

from .cart import read_cart
from .rendering import render

__all__ = ["page", "see_other", "shop_url", "show_error", "show_failure"]

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # an order page's URL is secret
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


async def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render ``template``; every page also gets the number of pieces in the cart and the debug mode."""
    html = await render(
        template, path=request.url.path, cart_count=sum(read_cart(request).values()), debug=settings.DEBUG, **context
    )
    return HTMLResponse(html, status, headers=_HEADERS)


def see_other(path: str) -> Response:
    """Redirect with GET, so that reloading the next page does not post again (RFC 9110 section 15.4.4)."""
    return Response(status_code=303, headers={"Location": path, "Cache-Control": "no-store"})


def shop_url(request: Request) -> str:
    """Return the shop's public URL: SHOP_URL, or in debug mode the request's."""
    return str(settings.SHOP_URL or request.base_url).rstrip("/")


async def show_error(request: Request, error: Exception) -> Response:
    """Render the page for an ``HTTPException``."""
    assert isinstance(error, HTTPException)
    response = await page(request, "error.html", error.status_code, status_code=error.status_code, detail=error.detail)
    response.headers.update(error.headers or {})
    return response


async def show_failure(request: Request, _error: Exception) -> Response:
    """Render the page for an unexpected error; the server logs the traceback."""
    return await page(
        request, "error.html", 500, status_code=500, detail="Something broke on our side. Nothing was ordered."
    )
