"""The messages that every sender sends: an order's, whose number ``{n}`` stands for, and a newsletter."""

import json
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Content", "write_content", "write_newsletter"]

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


TEMPLATE = Path(__file__).resolve().parent / "templates" / "newsletter.html"

ARTICLES = [
    {
        "slug": f"teapot-{number}",
        "title": f"Teapot number {number}, blue & white",
        "price": f"{number + 17},80 €",
        "text": (
            "Thrown by hand in a workshop by the sea, glazed twice and fired for two days, this teapot holds a litre "
            "and a half, pours without a drop on the cloth and keeps its tea hot for an hour. The lid does not fall "
            "when the last cup is poured; the handle stays cool. It comes with a strainer, and with our word that we "
            "take it back if you do not like it after a month of tea. "
        )
        * 2,
    }
    for number in range(1, 9)
]


class Content(NamedTuple):
    """A message as a template; ``attachment`` is the path of a file to attach, or None.

    ``template``: the HTML file of a newsletter, which a template engine fills with ``context`` in place of ``text`` and
    ``html``; the text is derived from the HTML. Jinja2, Django and Nunjucks read it alike.
    """

    sender: str
    subject: str
    text: str
    html: str
    attachment: str | None
    template: str | None = None
    articles: list[dict[str, str]] = []  # noqa: RUF012 - never changed

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

    def context(self, n: int) -> dict[str, Any]:
        """Return the values of the newsletter's template for reader ``n``."""
        return {"number": n, "name": f"Zoë {n}", "points": 7 * n % 500, "articles": self.articles}


def write_newsletter(path: Path) -> Path:
    """Write the newsletter as JSON."""
    content = Content(SENDER, "News for reader {n}", "", "", None, str(TEMPLATE), ARTICLES)
    path.write_text(json.dumps(content._asdict()), encoding="utf-8")
    return path


def write_content(path: Path, attachment: Path | None = None) -> Path:
    """Write the message as JSON, which the senders in all languages read."""
    content = Content(SENDER, SUBJECT, TEXT, HTML, None if attachment is None else str(attachment))
    path.write_text(json.dumps(content._asdict()), encoding="utf-8")
    return path
