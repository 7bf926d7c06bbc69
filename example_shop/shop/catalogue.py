"""The catalogue of products, which is filled at the first start."""

from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import select

from openviper.db import Model, create_tables, transaction

from .models import Product

__all__ = ["all_products", "prepare_database"]

_FIRST_STOCK = [
    ("Field notebook", "192 dotted pages, sewn, so that it lies flat on any table.", "notebook", "14.50", 40),
    ("Laid writing paper", "Fifty sheets, with a deckled edge that takes any ink well.", "paper", "18.00", 25),
    (
        "Lined envelopes",
        "Twenty-five, lined in green, for what nobody should read on the way.",
        "envelopes",
        "9.80",
        60,
    ),
    ("Iron gall ink", "Goes on pale, turns black by tomorrow, and stays so for centuries.", "ink", "16.40", 18),
    ("Brass fountain pen", "Turned from one bar. Heavy at first, then missed in every other pen.", "pen", "64.00", 6),
    ("Sealing wax and stamp", "Three sticks and a V to press into them.", "wax", "22.00", 12),
    ("Reading lamp", "A warm cone of light exactly as wide as a letter.", "lamp", "89.00", 3),
    ("Coiled viper paperweight", "Cast in Solingen, 640 grams. Nothing leaves the desk again.", "viper", "120.00", 1),
]


async def prepare_database() -> None:
    """Create missing tables, and add the first products if there are none."""
    await create_tables(Model.metadata)
    async with transaction() as session:
        if await session.scalar(select(Product.id).limit(1)) is None:
            session.add_all(
                Product(name=name, blurb=blurb, art=art, price=Decimal(price), stock=stock)
                for name, blurb, art, price, stock in _FIRST_STOCK
            )


async def all_products() -> Sequence[Product]:
    async with transaction() as session:
        return (await session.scalars(select(Product).order_by(Product.id))).all()
