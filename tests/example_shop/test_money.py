"""Amounts in the database."""

from decimal import Decimal

import pytest
from sqlalchemy.dialects import sqlite

from example_shop.shop.money import Money

DIALECT = sqlite.dialect()


@pytest.mark.parametrize("amount", ["0.00", "0.01", "9.80", "64.00", "21474836.47", "-5.00"])
def test_an_amount_comes_back_as_it_was(amount: str) -> None:
    kept = Money().process_bind_param(Decimal(amount), DIALECT)
    assert isinstance(kept, int)
    assert str(Money().process_result_value(kept, DIALECT)) == amount


def test_a_fraction_of_a_cent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.005 is not a whole number of cents"):
        Money().process_bind_param(Decimal("0.005"), DIALECT)


def test_no_amount_stays_no_amount() -> None:
    assert Money().process_bind_param(None, DIALECT) is None
    assert Money().process_result_value(None, DIALECT) is None
