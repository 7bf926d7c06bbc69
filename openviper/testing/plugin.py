"""The pytest plugin, found by its entry point. It loads nothing of the mail component before a test asks for mail."""

from typing import TYPE_CHECKING

import pytest

from openviper import testing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openviper.testing.mailbox import Mailbox

__all__ = ["mailbox"]


@pytest.fixture
def mailbox() -> "Iterator[Mailbox]":
    """All mail that leaves during the test, whatever its delivery mode; none of it reaches a server or a broker."""
    with testing.capture_mail() as captured:
        yield captured
