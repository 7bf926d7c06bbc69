"""The line that ends each message, in both bodies."""

from openviper.core.email import EmailMessageData

__all__ = ["add_footer"]

_TEXT = "Viper Supplies, 1 Garden Lane, Exampleton"
_HTML = f'<p class="small" style="text-align:center; color:#52615a; font-size:13px;">{_TEXT}</p>'


def add_footer(data: EmailMessageData) -> EmailMessageData:
    """End the message with the shop's postal address; ``EMAIL["before_send"]`` calls it for each message."""
    if isinstance(data.text, str):
        data.text = f"{data.text.rstrip()}\n\n-- \n{_TEXT}\n"
    if isinstance(data.html, str):
        head, body, tail = data.html.rpartition("</body>")
        data.html = f"{head}{_HTML}\n{body}{tail}" if body else f"{data.html}\n{_HTML}\n"
    return data
