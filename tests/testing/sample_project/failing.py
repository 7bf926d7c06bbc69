"""Run by name: shows what a failure looks like."""

from openviper.core.email import send_email


async def test_the_subject(mailbox):
    await send_email("alice@example.com", "Your order 7", text="Thank you!")
    mailbox.assert_sent(to="alice@example.com", subject="Your order 8")
