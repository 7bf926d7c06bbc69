"""The cart: product ids and quantities in a cookie; names and prices always come from the database."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select

from openviper import Request, Response
from openviper.db import transaction

from .models import Product

__all__ = ["MAX_QUANTITY", "Cart", "CartLine", "load_lines", "read_cart", "write_cart"]

MAX_QUANTITY = 20
_COOKIE = "cart"
_MAX_PRODUCTS = 20
_THIRTY_DAYS = 30 * 24 * 3600
_ITEM = re.compile(r"([1-9][0-9]{0,8}):([1-9][0-9]?)", re.ASCII)

Cart = dict[int, int]  # product id -> quantity


@dataclass(frozen=True)
class CartLine:
    """A product in the cart, at today's price."""

    product: Product
    quantity: int

    @property
    def total(self) -> Decimal:
        return self.product.price * self.quantity

    @property
    def in_stock(self) -> bool:
        return self.quantity <= self.product.stock


def read_cart(request: Request) -> Cart:
    """Return the cart in the request's cookie; ignore invalid parts of the cookie."""
    items = request.cookies.get(_COOKIE, "").split(".")[:_MAX_PRODUCTS]
    pairs = [(int(match[1]), int(match[2])) for item in items if (match := _ITEM.fullmatch(item))]
    return {product_id: min(quantity, MAX_QUANTITY) for product_id, quantity in pairs}


def write_cart(request: Request, response: Response, cart: Mapping[int, int]) -> None:
    """Store ``cart`` in a cookie, without products of quantity 0."""
    response.set_cookie(
        _COOKIE,
        ".".join(
            f"{product_id}:{min(quantity, MAX_QUANTITY)}" for product_id, quantity in cart.items() if quantity > 0
        ),
        max_age=_THIRTY_DAYS,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )


async def load_lines(cart: Mapping[int, int]) -> list[CartLine]:
    """Return the existing products in ``cart``, in the order of the shop window."""
    if not cart:
        return []
    async with transaction() as session:
        products = await session.scalars(select(Product).where(Product.id.in_(cart)).order_by(Product.id))
        return [CartLine(product, cart[product.id]) for product in products]
