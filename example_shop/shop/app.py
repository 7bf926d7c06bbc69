"""The shop's pages and forms."""

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.staticfiles import StaticFiles

from openviper import HTTPException, OpenViper, Request, Response
from openviper.conf import settings
from openviper.core.email import Email, UnsubscribeEndpoint
from openviper.db import dispose

from .cart import MAX_QUANTITY, load_lines, read_cart, write_cart
from .catalogue import all_products, prepare_database
from .forms import email_fault, read_customer, read_form, read_news
from .newsletter import count_readers, join, leave, send_newsletter
from .orders import Customer, OutOfStock, find_order, latest_orders, place_order, ship_order
from .outbox import count_kept_mail
from .pages import page, see_other, shop_url, show_error, show_failure
from .staff import require_staff

__all__ = ["app"]


@asynccontextmanager
async def lifespan(_app: OpenViper) -> AsyncIterator[None]:
    await prepare_database()
    yield
    await dispose()


app = OpenViper(
    title="Viper Supplies",
    debug=settings.DEBUG,
    lifespan=lifespan,
    exception_handlers={HTTPException: show_error, Exception: show_failure},
)
app.add_extension(Email())
app.add_extension(UnsubscribeEndpoint(leave))
app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))


@app.get("/")
async def shop_window(request: Request) -> Response:
    return await page(request, "products.html", products=await all_products())


@app.get("/cart")
async def show_cart(request: Request) -> Response:
    lines = await load_lines(read_cart(request))
    return await page(request, "cart.html", lines=lines, total=sum(line.total for line in lines), most=MAX_QUANTITY)


@app.post("/cart")
async def change_cart(request: Request) -> Response:
    """Add a product (``add``), set its quantity (``quantity``; 0 removes it), or remove it (``remove``)."""
    form = await read_form(request)
    cart = read_cart(request)
    product_id = _number(form.get("product", ""))
    if "add" in form:
        cart[product_id] = cart.get(product_id, 0) + 1
    else:
        cart[product_id] = 0 if "remove" in form else _number(form.get("quantity", ""))
    response = see_other("/cart")
    write_cart(request, response, cart)
    return response


@app.get("/checkout")
async def show_checkout(request: Request) -> Response:
    return await _checkout_page(request, Customer("", "", ""))


@app.post("/checkout")
async def check_out(request: Request) -> Response:
    form = await read_form(request)
    customer, faults = read_customer(form)
    token = form.get("token", "")
    if faults or not re.fullmatch(r"[\w-]{22}", token, re.ASCII):
        return await _checkout_page(request, customer, faults, status=422)
    cart = {line.product.id: line.quantity for line in await load_lines(read_cart(request))}
    if not cart:
        return see_other("/cart")
    try:
        order = await place_order(customer, cart, token, f"{shop_url(request)}/orders/{token}")
    except OutOfStock as error:
        return await _checkout_page(request, customer, sold_out=error.product_id, status=409)
    response = see_other(f"/orders/{order.token}")
    write_cart(request, response, {})
    return response


@app.get("/orders/{token}")
async def show_order(request: Request) -> Response:
    order = await find_order(request.path_params["token"])
    if order is None:
        raise HTTPException(404, "This order does not exist.")
    return await page(request, "order.html", order=order)


@app.get("/staff")
async def show_staff_page(request: Request) -> Response:
    require_staff(request)
    return await _staff_page(request)


@app.post("/staff/orders/{order_id:int}/ship")
async def ship(request: Request) -> Response:
    require_staff(request)
    await read_form(request)
    if await ship_order(request.path_params["order_id"]) is None:
        raise HTTPException(404, "This order does not exist.")
    return see_other("/staff")


@app.post("/staff/newsletter")
async def send_news(request: Request) -> Response:
    require_staff(request)
    subject, text, fault = read_news(await read_form(request))
    if fault:
        return await _staff_page(request, fault, status=422)
    sent = await send_newsletter(subject, text)
    return see_other(f"/staff?sent={sent}")


@app.post("/newsletter")
async def join_newsletter(request: Request) -> Response:
    email = (await read_form(request)).get("email", "").strip()
    if fault := email_fault(email, "the news go there"):
        return await _newsletter_page(request, fault=fault, status=422)
    await join(email)
    return see_other("/newsletter")


@app.get("/newsletter")
async def show_joined(request: Request) -> Response:
    return await _newsletter_page(request)


async def _newsletter_page(request: Request, *, fault: str | None = None, status: int = 200) -> Response:
    return await page(request, "newsletter.html", status, fault=fault)


async def _staff_page(request: Request, fault: str | None = None, *, status: int = 200) -> Response:
    sent = request.query_params.get("sent", "")
    return await page(
        request,
        "staff.html",
        status,
        orders=await latest_orders(),
        readers=await count_readers(),
        kept=await count_kept_mail(),
        sent=sent if sent.isdecimal() else None,
        fault=fault,
    )


async def _checkout_page(
    request: Request,
    customer: Customer,
    faults: dict[str, str] | None = None,
    *,
    sold_out: int | None = None,
    status: int = 200,
) -> Response:
    lines = await load_lines(read_cart(request))
    if not lines:
        return see_other("/cart")
    return await page(
        request,
        "checkout.html",
        status,
        customer=customer,
        faults=faults or {},
        lines=lines,
        total=sum(line.total for line in lines),
        short=next((line for line in lines if line.product.id == sold_out), None),
        # The form sends this token back, so that a form sent twice makes one order.
        token=secrets.token_urlsafe(16),
    )


def _number(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        raise HTTPException(400, "A number is missing in this form.")
    return int(value)
