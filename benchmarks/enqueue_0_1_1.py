"""Queue mail with openviper 0.1.1, in its own environment: ``enqueue_0_1_1.py CONTENT COUNT``."""

# ruff: noqa: I001 - openviper is not this checkout here

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "sending"))

from content import SENDER, Content
from openviper.core.email.message import EmailMessageData
from openviper.core.email.queue import deliver_email, message_to_payload

content = Content.read(sys.argv[1])
for number in range(1, int(sys.argv[2]) + 1):
    subject, text, html = content.filled(number)
    message = EmailMessageData(
        recipients=["customer@example.com"],
        subject=subject,
        text=text,
        html=html,
        cc=[],
        bcc=[],
        attachments=[],
        sender=SENDER,
    )
    deliver_email.send(message_to_payload(message))
