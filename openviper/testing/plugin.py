"""The pytest plugin, found by its entry point. It imports the mail component only when a test uses a fixture."""

import sys
from typing import TYPE_CHECKING

import pytest

from openviper import testing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from openviper.testing.inbox import Inbox
    from openviper.testing.mailbox import Mailbox

__all__ = ["inbox", "mailbox", "pytest_runtest_makereport"]


@pytest.fixture
def mailbox() -> "Iterator[Mailbox]":
    """Capture all mail sent during the test, whatever its delivery mode; none of it reaches a server or a broker."""
    with testing.capture_mail() as captured:
        yield captured


@pytest.fixture
def inbox(request: pytest.FixtureRequest) -> "Iterator[Inbox]":
    """Read the mail of the server at the fixture ``base_url`` (pytest-playwright has it, as ``--base-url``).

    Mail that was sent before the test is skipped.
    """
    try:
        base_url = request.getfixturevalue("base_url")
    except pytest.FixtureLookupError as error:
        if error.argname != "base_url":
            raise
        base_url = None
    if not base_url:
        pytest.fail("the fixture 'inbox' needs the server's URL: give --base-url, or define a fixture base_url", False)
    with testing.Inbox(base_url) as opened:
        opened.skip()
        yield opened


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
