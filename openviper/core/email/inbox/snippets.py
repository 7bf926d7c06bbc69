"""Show the beginning of a message as the lists of mail clients do: of the text that readers see."""

import re
from html import unescape
from itertools import islice

from openviper.core.email.message import PreparedMessage
from openviper.markup import read_tags

__all__ = ["snippet"]

_LENGTH = 160  # characters
_MOST_TAGS = 3000
_WITHOUT_TEXT = frozenset({"script", "style", "template", "title"})
_INSIDE_WORDS = frozenset(
    {"a", "b", "big", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub", "sup", "u"}
)
# Preheaders are filled up with these, so that the list shows nothing of the text behind them.
_FILLERS = re.compile("[\u00ad\u034f\u200b-\u200f\u2007\u2060\ufeff]+")


def snippet(message: PreparedMessage) -> str:
    """Return the beginning of the HTML part's text, or of the text part if there is no HTML, in one line.

    Text that is hidden counts, as a preheader does. The time is proportional to the length of what is read.
    """
    if message.html is not None and (found := _of_html(message.html)):
        return found
    return _in_one_line((message.text or "")[: 4 * _LENGTH])


def _of_html(html: str) -> str:
    text, skipped, position = "", "", 0
    for tag in islice(read_tags(html), _MOST_TAGS):
        if not skipped:
            text += unescape(html[position : min(tag.start, position + 4 * _LENGTH)])
            if tag.name not in _INSIDE_WORDS:
                text += " "
        position = tag.end
        if tag.kind == "start" and not skipped and tag.name in _WITHOUT_TEXT:
            skipped = tag.name
        elif tag.kind == "end" and tag.name == skipped:
            skipped = ""
        if len(text) >= 4 * _LENGTH and len(shown := _in_one_line(text)) >= _LENGTH:
            return shown
    if not skipped:
        text += unescape(html[position : position + 4 * _LENGTH])
    return _in_one_line(text)


def _in_one_line(text: str) -> str:
    return " ".join(_FILLERS.sub(" ", text).split())[:_LENGTH]
