"""A shop's checkout as an application: one order with three lines and one mail, in one transaction.

This is the least that a user would call a checkout: a request that names customer and cart, rows written by the ORM,
and a mail that is rendered from a template with the order and is delivered by SMTP. A real one also looks up products,
a session or a user (the example shop's checkout does), which makes the outbox's share smaller.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from openviper.core.email import send_email
from openviper.db import transaction

__all__ = ["Base", "Order", "OrderLine", "call", "checkout_application", "deferring_application"]

_CART = [
    {"name": "Coffee, 250 g", "price": 590, "quantity": 2},
    {"name": "Teapot, blue", "price": 2400, "quantity": 1},
    {"name": "Paper filters", "price": 350, "quantity": 3},
]
_CUSTOMER = {"name": "Zoë Viper", "email": "customer@example.com", "address": "1 Long Lane, 12345 Anytown"}
_BODY = json.dumps({**_CUSTOMER, "lines": _CART}).encode()
_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/checkout",
    "raw_path": b"/checkout",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"shop.test"), (b"content-type", b"application/json")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 80),
}


class Base(DeclarativeBase):
    pass


class OrderLine(Base):
    __tablename__ = "order_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    name: Mapped[str] = mapped_column(String(80))
    price: Mapped[int]  # cents
    quantity: Mapped[int]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    email: Mapped[str] = mapped_column(String(254))
    address: Mapped[str] = mapped_column(String(400))
    lines: Mapped[list[OrderLine]] = relationship(order_by=OrderLine.id)


def checkout_application(*, mail: bool, more: Callable[[Any], Awaitable[None]] | None = None) -> Starlette:
    """Make the application; without ``mail`` the order is not confirmed. ``more`` is called with the session."""

    async def check_out(request: Request) -> JSONResponse:
        values = await request.json()
        lines = [OrderLine(**line) for line in values.pop("lines")]
        async with transaction() as session:
            order = Order(**values, lines=lines)
            session.add(order)
            await session.flush()
            if mail:
                await _confirm(order)
            if more is not None:
                await more(session)
        return JSONResponse({"order": order.id}, status_code=201)

    return Starlette(routes=[Route("/checkout", check_out, methods=["POST"])])


def deferring_application() -> Starlette:
    """Make an application that sends the same mail without a transaction: it is deferred."""

    async def check_out(request: Request) -> JSONResponse:
        values = await request.json()
        lines = [OrderLine(**line) for line in values.pop("lines")]
        await _confirm(Order(**values, lines=lines, id=7))
        return JSONResponse({}, status_code=201)

    return Starlette(routes=[Route("/checkout", check_out, methods=["POST"])])


async def _confirm(order: Order) -> None:
    await send_email(order.email, f"Your order {order.id}", template="order", context={"order": order})


async def call(app: Any, on_response: Callable[[], None] = lambda: None) -> None:
    """Send one request to ``app``; ``on_response`` is called when the response has ended."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": _BODY, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif not message.get("more_body"):
            on_response()

    await app(dict(_SCOPE), receive, send)
    assert status == 201, f"the checkout was answered with {status}"
