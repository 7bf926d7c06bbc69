"""The pytest plugin, found by its entry point. It imports the mail component only when a test uses the fixture."""

from typing import TYPE_CHECKING

import pytest

from openviper import testing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openviper.testing.mailbox import Mailbox

__all__ = ["mailbox"]


@pytest.fixture
def mailbox() -> "Iterator[Mailbox]":
    """Capture all mail sent during the test, whatever its delivery mode; none of it reaches a server or a broker."""
    with testing.capture_mail() as captured:
        yield captured
