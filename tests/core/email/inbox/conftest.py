"""An application with the inbox page, opened in this process."""

from collections.abc import Iterator

import pytest
from support.inbox import Inboxes

from openviper.conf import override


@pytest.fixture
def inboxes() -> Iterator[Inboxes]:
    """Opens applications with DEBUG on."""
    with override(DEBUG=True):
        yield Inboxes()
