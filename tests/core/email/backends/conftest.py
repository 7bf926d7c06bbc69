"""Messages with every header, for the tests of backends."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from openviper.core.email.message import EmailMessageData, Envelope, OutgoingMessage, check_message
from openviper.core.email.message.serialiser import serialise


@pytest.fixture
def outgoing() -> Callable[..., OutgoingMessage]:
    """Prepares and serialises a message from the fields of ``EmailMessageData``."""

    def make(**fields: object) -> OutgoingMessage:
        data = replace(
            EmailMessageData(recipients=["ann@example.test"], subject="Hello", sender="Shop <shop@example.test>"),
            **fields,  # type: ignore[arg-type]
        )
        if data.html is None and data.text is None:
            data.text = "Hello, world"
        prepared = check_message(data, default_sender=None)
        recipients = tuple(address.addr_spec for address in (*prepared.to, *prepared.cc, *prepared.bcc))
        content = serialise(prepared)
        return OutgoingMessage(
            prepared, Envelope(prepared.envelope_sender, recipients), content, sum(len(chunk) for chunk in content)
        )

    return make
