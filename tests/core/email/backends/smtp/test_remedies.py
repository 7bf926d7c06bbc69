"""The remedy of a failed delivery: in the log at the first failed attempt, and below the error of an inline send."""

import copy
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.patience import PATIENCE
from support.ports import lasting_port
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn

from openviper.conf import override
from openviper.core.email import DeliveryError, send_email
from openviper.core.email.backends.smtp.remedies import NO_ADDRESS, UNREACHABLE

CONNECTION = " (docs: troubleshooting#connection)"
APPS = Path(__file__).parents[4] / "apps"


async def failure(**setting: Any) -> DeliveryError:
    """Send one message inline with these settings; return the error."""
    with override(EMAIL={"default_sender": "shop@example.test", **setting}), pytest.raises(DeliveryError) as caught:
        await send_email("a@example.test", "Hello", "Hi")
    return caught.value


def notes(error: DeliveryError) -> list[str]:
    return getattr(error, "__notes__", [])


async def test_a_closed_port_has_the_remedy_of_email_check() -> None:
    error = await failure(host="127.0.0.1", port=lasting_port())
    assert notes(error) == [f"-> {UNREACHABLE}{CONNECTION}"]


async def test_a_name_without_an_address_has_the_remedy_of_email_check() -> None:
    assert notes(await failure(host="no-such-host.invalid")) == [f"-> {NO_ADDRESS}{CONNECTION}"]


async def test_a_server_that_nobody_has_named_is_said_to_be_the_default() -> None:
    (note,) = notes(await failure(port=lasting_port()))
    assert note == f'-> set EMAIL["host"], which is not set; the settings come from override(){CONNECTION}'


@pytest.mark.parametrize(
    ("server", "setting", "remedy"),
    [
        (
            lambda: SmtpServer(users={"shop": "secret"}),
            {"password": "wrong"},
            'correct EMAIL["username"] and EMAIL["password"]',
        ),
        (lambda: SmtpServer(tls="starttls", certificate="untrusted"), {}, 'set EMAIL["tls_ca_file"]'),
        (lambda: SmtpServer(tls="starttls", certificate="expired"), {}, "renew the certificate on the mail server"),
        (lambda: SmtpServer(tls="implicit", certificate="wrong-host"), {}, 'set EMAIL["host"] to a name that is in'),
        (SmtpServer, {"use_ssl": True}, 'EMAIL["use_ssl"] is for port 465'),
    ],
    ids=["password", "untrusted", "expired", "wrong host", "no TLS"],
)
async def test_the_server_s_answer_chooses_the_remedy(
    server: Callable[[], SmtpServer], setting: dict[str, Any], remedy: str
) -> None:
    with server() as smtp:
        (note,) = notes(await failure(**{**smtp.settings(), **setting}))
    assert note.startswith(f"-> {remedy}")


async def test_a_refused_recipient_points_at_no_setting() -> None:
    with SmtpServer() as smtp:
        smtp.refuse("a@example.test", 550)
        assert notes(await failure(**smtp.settings())) == []


async def test_the_remedy_survives_pickle_and_copy() -> None:
    error = await failure(host="no-such-host.invalid")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert notes(again) == notes(error)


async def test_a_silent_failure_logs_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    with override(EMAIL={"host": "no-such-host.invalid", "default_sender": "shop@example.test"}):
        assert not await send_email("a@example.test", "Hello", "Hi", fail_silently=True)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.endswith(f"; {NO_ADDRESS}{CONNECTION}")


def test_under_uvicorn_the_first_failed_attempt_is_told_at_once_with_the_remedy() -> None:
    """Nothing configures the log: uvicorn shows what the last resort does, from WARNING on."""
    setting = {"EMAIL_HOST": "127.0.0.1", "EMAIL_PORT": str(lasting_port()), "EMAIL_DEFAULT_SENDER": "s@example.test"}
    with Uvicorn("fastapi_app:attached", APPS, {**setting, "EMAIL_SHUTDOWN_TIMEOUT": "0"}) as server:
        assert httpx.get(f"{server.url}/order", timeout=PATIENCE).json()["mode"] == "deferred"
        server.read_until("attempt 1 failed")
        (line, *_) = [line for line in server.log if "attempt 1 failed" in line]
        assert re.search(r"next one in 1 s: 127\.0\.0\.1:\d+: connecting: Connection refused; ", line)
        assert line.rstrip().endswith(f"{UNREACHABLE}{CONNECTION}")
        server.stop()
