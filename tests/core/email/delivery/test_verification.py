"""``verify()``: what ``viperctl email check`` finds, from code."""

from collections.abc import Iterator

import pytest
from support.ports import lasting_port
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import Address, InvalidAddress, verify
from openviper.exceptions import ImproperlyConfigured


@pytest.fixture
def smtpd() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


async def test_a_server_that_takes_mail_passes_and_gets_none(smtpd: SmtpServer) -> None:
    email = {"host": "127.0.0.1", "port": smtpd.port, "default_sender": "Shop <shop@example.com>"}
    with override(EMAIL=email):
        found = await verify()
    assert found
    assert found.failed == ()
    checks = {each.check: each for each in found}
    assert [*checks] == [
        "settings",
        "dns",
        "tcp",
        "tls",
        "ehlo",
        "auth",
        "sender",
        "broker",
        "worker",
        "keys",
        "spf",
        "dmarc",
    ]
    assert checks["sender"].found == "shop@example.com is accepted (nothing was sent)"
    assert "from override()" in checks["settings"].found
    assert smtpd.messages == []


async def test_a_server_that_is_not_there_is_a_result_with_its_remedy() -> None:
    with override(EMAIL={"host": "127.0.0.1", "port": lasting_port(), "default_sender": "shop@example.com"}):
        found = await verify(timeout=2)
    assert not found
    assert [each.check for each in found.failed] == ["tcp"]
    assert 'correct EMAIL["host"] and EMAIL["port"]' in found.failed[0].remedy
    assert f"failed tcp: {found.failed[0].found}; {found.failed[0].remedy}" in str(found).splitlines()


async def test_the_sender_may_be_any_address(smtpd: SmtpServer) -> None:
    with override(EMAIL={"host": "127.0.0.1", "port": smtpd.port}):
        for sender in (
            "News <news@example.com>",
            ("News, daily", "news@example.com"),
            Address.of("", "news@example.com"),
        ):
            found = await verify(sender=sender)
            assert "news@example.com is accepted (nothing was sent)" in [each.found for each in found]
        with pytest.raises(InvalidAddress, match=r"^sender: 'nobody' has no '@'"):
            await verify(sender="nobody")


async def test_a_backend_without_a_server_needs_none() -> None:
    with override(EMAIL={"backend": "NullBackend", "default_sender": "shop@example.com"}):
        found = await verify()
    assert found
    assert ("tcp", "skipped", "NullBackend uses no mail server") in [(x.check, x.status, x.found) for x in found]


async def test_wrong_settings_raise() -> None:
    with override(EMAIL={"port": "x"}), pytest.raises(ImproperlyConfigured, match=r'EMAIL\["port"\]'):
        await verify()
