"""The message that every sender sends; ``{n}`` stands for the message's number."""

import json
from pathlib import Path
from typing import NamedTuple

__all__ = ["Content", "write_content"]

SENDER = "Vipera Shop <shop@example.com>"

SUBJECT = "Your order {n} is on its way"

TEXT = """Dear Zoë,

thank you for your order {n}. It has left our warehouse this morning
and will be with you within two working days.

  2 x Coffee, 250 g        11,80 €
  1 x Teapot, blue         24,00 €
  Postage                   3,90 €
  ----------------------------------
  Total                    39,70 €

You can follow it here: https://shop.test/orders/{n}/follow

With kind regards
Your Vipera Shop
"""

HTML = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Your order {n}</title></head>
<body>
<h1>Dear Zoë,</h1>
<p>thank you for your order <strong>{n}</strong>. It has left our warehouse this morning
and will be with you within two working days.</p>
<table cellpadding="4">
<tr><td>2 &times; Coffee, 250 g</td><td align="right">11,80 €</td></tr>
<tr><td>1 &times; Teapot, blue</td><td align="right">24,00 €</td></tr>
<tr><td>Postage</td><td align="right">3,90 €</td></tr>
<tr><td><b>Total</b></td><td align="right"><b>39,70 €</b></td></tr>
</table>
<p>You can <a href="https://shop.test/orders/{n}/follow">follow it here</a>.</p>
<p>With kind regards<br>Your Vipera Shop</p>
</body>
</html>
"""


class Content(NamedTuple):
    """A message as a template; ``attachment`` is the path of a file to attach, or None."""

    sender: str
    subject: str
    text: str
    html: str
    attachment: str | None

    @classmethod
    def read(cls, path: str) -> "Content":
        """Read the content that ``write_content`` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def filled(self, n: int) -> tuple[str, str, str]:
        """Return subject, text and HTML of message ``n``."""
        number = str(n)
        return (
            self.subject.replace("{n}", number),
            self.text.replace("{n}", number),
            self.html.replace("{n}", number),
        )


def write_content(path: Path, attachment: Path | None = None) -> Path:
    """Write the message as JSON, which the senders in all languages read."""
    content = Content(SENDER, SUBJECT, TEXT, HTML, None if attachment is None else str(attachment))
    path.write_text(json.dumps(content._asdict()), encoding="utf-8")
    return path
