"""The invoice: one HTML file that opens anywhere and prints on one sheet."""

from typing import TYPE_CHECKING

from openviper.core.email import AttachmentData

from .rendering import render

if TYPE_CHECKING:
    from .models import Order

__all__ = ["invoice_for"]


async def invoice_for(order: "Order") -> AttachmentData:
    """The invoice of ``order``, ready to be attached."""
    document = await render("invoice.html", order=order)
    return AttachmentData(f"invoice-{order.number}.html", document.encode(), "text/html")
