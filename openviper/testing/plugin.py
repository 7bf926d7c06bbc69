"""The pytest plugin, found by its entry point. It imports the mail component only when a test uses the fixture."""

import sys
from typing import TYPE_CHECKING

import pytest

from openviper import testing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from openviper.testing.mailbox import Mailbox

__all__ = ["mailbox", "pytest_runtest_makereport"]


@pytest.fixture
def mailbox() -> "Iterator[Mailbox]":
    """Capture all mail sent during the test, whatever its delivery mode; none of it reaches a server or a broker."""
    with testing.capture_mail() as captured:
        yield captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: "pytest.CallInfo[None]"
) -> "Generator[None, pytest.TestReport, pytest.TestReport]":
    """Point to the fixture where a test failed because it sent mail to a server."""
    report = yield
    errors = sys.modules.get("openviper.core.email.errors")
    if errors is not None and call.excinfo is not None and "mailbox" not in getattr(item, "fixturenames", ()):
        error = call.excinfo.value
        if isinstance(error, errors.ConnectionFailed):
            text = "The test sent mail to a server. The fixture 'mailbox' captures it instead: def test_it(mailbox)."
            report.sections.append(("openviper", text))
    return report
