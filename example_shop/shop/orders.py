"""Place, find and ship orders; each function is one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from openviper.db import transaction

from .models import Order, OrderLine, Product

__all__ = ["Customer", "OutOfStock", "find_order", "latest_orders", "place_order", "ship_order"]


@dataclass(frozen=True)
class Customer:
    """The customer's name, email address and postal address."""

    name: str
    email: str
    address: str


class OutOfStock(Exception):
    """Too few pieces are left; nothing was ordered."""

    def __init__(self, product_id: int) -> None:
        super().__init__(f"product {product_id} is out of stock")
        self.product_id = product_id


async def place_order(customer: Customer, cart: Mapping[int, int], token: str, url: str) -> Order:
    """Reduce the stock and insert the order, both or neither. ``Order.after_insert`` confirms it by mail.

    One ``token`` makes one order: if the same form is sent twice, the first order is returned. ``url`` is the order's
    page.

    Raises:
        OutOfStock: fewer pieces are left than the cart contains.
    """
    try:
        async with transaction() as session:
            # In the order of the ids, so that two checkouts cannot deadlock.
            lines = [await _take(session, product_id, quantity) for product_id, quantity in sorted(cart.items())]
            order = Order(token=token, url=url, placed_on=_today(), lines=lines, **asdict(customer))
            session.add(order)
    except (OutOfStock, IntegrityError):
        if first := await find_order(token):
            return first
        raise
    return order


async def find_order(token: str) -> Order | None:
    async with transaction() as session:
        return await session.scalar(select(Order).where(Order.token == token))


async def latest_orders(limit: int = 100) -> Sequence[Order]:
    """Return the latest orders, newest first."""
    async with transaction() as session:
        return (await session.scalars(select(Order).order_by(Order.id.desc()).limit(limit))).all()


async def ship_order(order_id: int) -> Order | None:
    """Mark an order as shipped, once; ``Order.on_change`` notifies the customer. None if it does not exist."""
    async with transaction() as session:
        order = await session.get(Order, order_id, with_for_update=True)
        if order is not None and order.shipped_on is None:
            order.shipped_on = _today()
        return order


async def _take(session: AsyncSession, product_id: int, quantity: int) -> OrderLine:
    # One statement checks and reduces the stock, so two checkouts never sell the same piece.
    taken = await session.execute(
        update(Product)
        .where(Product.id == product_id, Product.stock >= quantity)
        .values(stock=Product.stock - quantity)
        .returning(Product.name, Product.price)
        .execution_options(synchronize_session=False)
    )
    row = taken.one_or_none()
    if row is None:
        raise OutOfStock(product_id)
    return OrderLine(product_id=product_id, name=row.name, price=row.price, quantity=quantity)


def _today() -> date:
    return datetime.now(UTC).date()
