"""Amounts of money: ``Decimal`` euros in Python, whole cents in the database."""

from decimal import Decimal

from sqlalchemy import Dialect, Integer
from sqlalchemy.types import TypeDecorator

__all__ = ["Money"]


class Money(TypeDecorator[Decimal]):
    """A column of euros, exact on every database because it is kept in cents. Values have two decimals: 24.00."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - SQLAlchemy's
        if value is None:
            return None
        cents = value.scaleb(2)
        if cents != cents.to_integral_value():
            raise ValueError(f"{value} is not a whole number of cents")
        return int(cents)

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:  # noqa: ARG002 - SQLAlchemy's
        return None if value is None else Decimal(value).scaleb(-2)
