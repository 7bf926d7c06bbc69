"""Answers to a browser: pages and redirects, with the headers that every one of them carries."""

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
    "Referrer-Policy": "same-origin",  # the address of an order page is a secret
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


async def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render ``template``; every page also knows how full the cart is and whether there is an inbox page."""
    html = await render(
        template, path=request.url.path, cart_count=sum(read_cart(request).values()), debug=settings.DEBUG, **context
    )
    return HTMLResponse(html, status, headers=_HEADERS)


def see_other(path: str) -> Response:
    """Send the browser on with GET, so that reloading the next page posts nothing again (RFC 9110, 15.4.4)."""
    return Response(status_code=303, headers={"Location": path, "Cache-Control": "no-store"})


def shop_url(request: Request) -> str:
    """Where customers reach the shop: SHOP_URL, or in debug mode where this request came in."""
    return str(settings.SHOP_URL or request.base_url).rstrip("/")


async def show_error(request: Request, error: Exception) -> Response:
    """The page for an ``HTTPException``."""
    assert isinstance(error, HTTPException)
    response = await page(request, "error.html", error.status_code, status_code=error.status_code, detail=error.detail)
    response.headers.update(error.headers or {})
    return response


async def show_failure(request: Request, _error: Exception) -> Response:
    """The page for a fault of ours; the server logs the traceback."""
    return await page(
        request, "error.html", 500, status_code=500, detail="Something broke on our side. Nothing was ordered."
    )
