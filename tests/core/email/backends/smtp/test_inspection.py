"""Inspection of a mail server, step by step."""

import socket
from datetime import UTC, datetime, timedelta

import pytest
from support.smtpd import SmtpServer

from openviper.core.email.backends.smtp.errors import certificate_error, is_greeting_error, is_tls_error
from openviper.core.email.backends.smtp.inspection import Inspection
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed, DeliveryError, MessageRefused
from openviper.core.email.settings import EmailSettings


async def inspect(server: SmtpServer, **settings: object) -> Inspection:
    sock = socket.create_connection((server.host, server.port))
    sock.setblocking(False)
    return await Inspection.create(EmailSettings(**server.settings(**settings)), sock)


async def test_each_step_reports_its_findings() -> None:
    with SmtpServer(tls="starttls", users={"shop": "secret"}) as server:
        async with await inspect(server) as inspection:
            await inspection.connect()
            await inspection.greet()
            assert inspection.tls is None
            await inspection.start_tls()
            assert inspection.tls is not None
            assert inspection.tls.version in {"TLSv1.2", "TLSv1.3"}
            assert "authority of the tests" in inspection.tls.issuer
            assert inspection.tls.expires > datetime.now(UTC) + timedelta(days=100)
            assert inspection.auth_methods == ("plain", "login")
            assert "pipelining" in inspection.extensions
            await inspection.log_in()
            await inspection.try_sender("shop@example.com")
        server.wait_until(lambda: server.open_connections == 0)
    assert server.verbs[-3:] == ["MAIL", "RSET", "QUIT"]
    assert server.messages == []
    assert server.connections == 1


async def test_a_refused_sender_is_reported_with_the_reply() -> None:
    with SmtpServer() as server:
        server.fault("MAIL", 550)
        async with await inspect(server) as inspection:
            await inspection.connect()
            await inspection.greet()
            with pytest.raises(MessageRefused, match="MAIL FROM: 550"):
                await inspection.try_sender("shop@example.com")


async def test_a_sender_beyond_ascii_needs_smtputf8() -> None:
    with SmtpServer(capabilities=()) as server:
        async with await inspect(server) as inspection:
            await inspection.connect()
            await inspection.greet()
            with pytest.raises(MessageRefused, match="SMTPUTF8"):
                await inspection.try_sender("jörg@example.com")
    assert "MAIL" not in server.verbs


async def test_a_connection_lost_at_the_sender_is_no_refusal() -> None:
    with SmtpServer() as server:
        server.fault("MAIL", "drop")
        async with await inspect(server) as inspection:
            await inspection.connect()
            await inspection.greet()
            with pytest.raises(ConnectionFailed, match="MAIL FROM: the server closed"):
                await inspection.try_sender("shop@example.com")


async def test_a_wrong_password_is_an_authentication_failure() -> None:
    with SmtpServer(users={"shop": "right"}) as server:
        async with await inspect(server, password="wrong") as inspection:
            await inspection.connect()
            await inspection.greet()
            with pytest.raises(AuthenticationFailed):
                await inspection.log_in()


@pytest.mark.parametrize("action", [554, "drop", "garbage"])
@pytest.mark.parametrize("tls", ["none", "implicit"])
async def test_a_failed_greeting_is_distinguished_from_failed_tls(action: int | str, tls: str) -> None:
    with SmtpServer(tls=tls) as server:  # type: ignore[arg-type]
        server.fault("greeting", action)
        async with await inspect(server) as inspection:
            with pytest.raises(DeliveryError) as raised:
                await inspection.connect()
    assert is_greeting_error(raised.value)
    assert certificate_error(raised.value) is None
    assert not is_tls_error(raised.value)


async def test_failed_tls_is_no_greeting_error() -> None:
    with SmtpServer(tls="implicit", certificate="expired") as server:
        async with await inspect(server) as inspection:
            with pytest.raises(DeliveryError) as raised:
                await inspection.connect()
    assert not is_greeting_error(raised.value)
    assert is_tls_error(raised.value)
    fault = certificate_error(raised.value)
    assert fault is not None
    assert "expired" in fault.verify_message
