"""Previews of the shop's mail, which the page of templates at ``/_mail/templates`` lists."""

from datetime import date
from decimal import Decimal
from typing import Any

from openviper.core.email import preview

from .models import Order, OrderLine

__all__ = ["order_confirmation", "order_shipped"]

_VARIANTS: dict[str, dict[str, Any]] = {
    "long name": {"name": "Maximiliana Konstantinopoulou-Featherstonehaugh of the Lower Meadows"},
    "many lines": {"lines": 30},
}


@preview(variants=_VARIANTS)
def order_confirmation(name: str = "Ana Costa", lines: int = 2) -> dict[str, Any]:
    """Confirm an order that was placed."""
    return _order(name, lines).confirmation()


@preview(variants=_VARIANTS)
async def order_shipped(name: str = "Ana Costa", lines: int = 2) -> dict[str, Any]:
    """Say that an order is on its way, with the invoice."""
    return await _order(name, lines).shipping_notice()


def _order(name: str, lines: int) -> Order:
    """Return an order that is in no database."""
    order = Order(
        id=42,
        token="sample",  # noqa: S106 - of no order
        url="https://shop.example/orders/sample",
        name=name,
        email="ana@example.com",
        address="Rua Augusta 12\n1100-053 Lisboa",
        placed_on=date(2026, 1, 15),
        shipped_on=date(2026, 1, 16),
    )
    order.lines = [
        OrderLine(product_id=number, name=f"Field notebook {number}", price=Decimal("14.50"), quantity=number)
        for number in range(1, lines + 1)
    ]
    return order
