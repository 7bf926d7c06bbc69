import asyncio

from openviper.testing import Mailbox
from send import main


def test_each_reader_gets_a_message_of_their_own(mailbox: Mailbox) -> None:
    asyncio.run(main())
    mailbox.assert_sent(count=3)
    message = mailbox.assert_sent(to="alice@example.com")
    assert message.subject == "The news of June, Alice"
    assert message.to == ('"Alice" <alice@example.com>',)
    assert "Hello Alice" in (message.text or "")
    link = message.headers["List-Unsubscribe"].strip("<>")
    assert link in (message.text or "")
