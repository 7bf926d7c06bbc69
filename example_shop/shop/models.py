"""The shop's database models: products, readers, and orders that send mail when they are placed and shipped."""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from openviper.core.email import AttachmentData, send_email
from openviper.db import Model

from .money import Money
from .rendering import render

__all__ = ["Order", "OrderLine", "Product", "Reader"]

# The HTML shows it as cid:logo.
_LOGO = {"path": Path(__file__).parent / "static" / "logo.png", "inline": True, "content_id": "logo"}


class Product(Model):
    """A product. ``art`` names its drawing in templates/art."""

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    blurb: Mapped[str] = mapped_column(String(200))
    art: Mapped[str] = mapped_column(String(20))
    price: Mapped[Decimal] = mapped_column(Money)
    stock: Mapped[int]


class Reader(Model):
    """A reader of the newsletter. ``token`` names them in links: unlike an id, it is never another reader's later."""

    __tablename__ = "readers"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    token: Mapped[str] = mapped_column(String(22), unique=True)


class OrderLine(Model):
    """A sold product, whose name and price stay as they were at the sale."""

    __tablename__ = "order_lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"))
    name: Mapped[str] = mapped_column(String(80))
    price: Mapped[Decimal] = mapped_column(Money)
    quantity: Mapped[int]

    @property
    def total(self) -> Decimal:
        return self.price * self.quantity


class Order(Model):
    """An order. ``token`` is the secret part of its page's ``url``; ``shipped_on`` is None until it is shipped."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(22), unique=True)
    url: Mapped[str]
    name: Mapped[str] = mapped_column(String(80))
    email: Mapped[str] = mapped_column(String(254))
    address: Mapped[str] = mapped_column(String(400))
    placed_on: Mapped[date]
    shipped_on: Mapped[date | None]
    lines: Mapped[list[OrderLine]] = relationship(lazy="selectin", order_by=OrderLine.id)

    @property
    def number(self) -> int:
        """Return the number that customers see; the first order's is 1001."""
        return 1000 + self.id

    @property
    def total(self) -> Decimal:
        return sum((line.total for line in self.lines), Decimal("0.00"))

    async def invoice(self) -> AttachmentData:
        """Return the invoice, an HTML file that prints on one sheet."""
        document = await render("invoice.html", order=self)
        return AttachmentData(f"invoice-{self.number}.html", document.encode(), "text/html")

    def confirmation(self) -> dict[str, Any]:
        """Return the arguments of ``send_email`` for the order's confirmation."""
        return {
            "recipients": self.email,
            "subject": f"Your order {self.number} at Viper Supplies",
            "template": "emails/order_confirmation.md",
            "context": {"order": self},
        }

    async def shipping_notice(self) -> dict[str, Any]:
        """Return the arguments for the notice that it was shipped, with the invoice attached and the logo inline."""
        return {
            "recipients": self.email,
            "subject": f"Your order {self.number} is on its way",
            "template": "emails/order_shipped",  # the pair of .html and .txt
            "context": {"order": self},
            "attachments": [_LOGO, await self.invoice()],
        }

    async def after_insert(self) -> None:
        """Confirm the order by mail, which is sent after the commit; a rollback discards it."""
        await send_email(**self.confirmation())

    async def on_change(self, previous_state: Mapping[str, Any]) -> None:
        """Notify the customer that the order was shipped."""
        if "shipped_on" in previous_state and previous_state["shipped_on"] is None:
            await send_email(**await self.shipping_notice())
