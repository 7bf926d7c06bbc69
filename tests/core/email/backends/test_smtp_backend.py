"""SMTPBackend against a real server on loopback."""

import pytest
from support.messages import outgoing
from support.smtpd import SmtpServer

from openviper.core.email.backends import SMTPBackend
from openviper.core.email.settings import EmailSettings


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_a_message_arrives_as_it_was_given(tls: str) -> None:
    with SmtpServer(tls=tls, users={"me": "secret"}) as server:
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            report = await backend.send(outgoing())
            (received,) = await server.arrive(1)
    assert report.accepted == ("to@example.com",)
    assert received.content == b"".join(outgoing().content)
    assert received.user == "me"
    assert received.tls is (tls != "none")
