"""Convert HTML to plain text, for the text part of messages that have none."""

from openviper.core.email.message.plaintext.document import html_to_text

__all__ = ["html_to_text"]
