"""The backend that drops mail."""

import pytest

from openviper.conf import override
from openviper.core.email import submit_email
from openviper.core.email.backends import NullBackend, get_backend
from openviper.core.email.backends.memory import sent
from openviper.core.email.delivery import current_mailer
from openviper.core.email.settings import EmailSettings


@pytest.mark.parametrize("name", ["NullBackend", "openviper.core.email.backends.NullBackend"])
async def test_every_recipient_is_accepted_and_nothing_is_kept(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    kept = len(sent)
    with override(EMAIL={"backend": name, "default_sender": "shop@example.com"}):
        receipt = await submit_email(["a@example.com", "b@example.com"], "Hello", text="Hi", bcc="c@example.com")
        assert receipt
        assert receipt.accepted == ("a@example.com", "b@example.com", "c@example.com")
        assert (await current_mailer()).transport.describe() == "NullBackend"
    assert len(sent) == kept
    assert capfd.readouterr().out == ""


async def test_it_asks_no_broker() -> None:
    tasks = {"enabled": True, "broker": "redis", "broker_url": "redis://127.0.0.1:1/0"}
    with override(EMAIL={"backend": "NullBackend", "default_sender": "shop@example.com"}, TASKS=tasks):
        receipt = await submit_email("a@example.com", "Hello", text="Hi", background=True)
        assert receipt.mode == "inline"
        assert (await current_mailer()).transport.queue is None


def test_it_is_made_by_its_name() -> None:
    assert isinstance(get_backend("NullBackend", EmailSettings()), NullBackend)
