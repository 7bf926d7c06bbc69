"""Convert HTML to plain text tag by tag, where it nests too deep or has tags too large for the parser."""

from collections import Counter
from html import unescape

from openviper.core.email.message.plaintext.elements import (
    BY_ATTRIBUTE,
    DROPPED,
    ON_ENTERING,
    ON_LEAVING,
    is_left_out,
)
from openviper.core.email.message.plaintext.layout import TextLayout
from openviper.markup import MOST_ATTRIBUTES, Tag, attribute_text, attributes, read_tags

__all__ = ["lay_out"]

_MOST_OPEN = 250  # deeper elements are read as if they were not there
_NEVER_CLOSED = frozenset({"area", "base", "br", "embed", "hr", "img", "input", "link", "meta"})
# The others leave nothing in the layout that their end would have to take back.
_KEPT_OPEN = frozenset({"a", "blockquote", "dd", "dir", "li", "menu", "ol", "pre", "table", "ul"})
_ENDED_BY_THE_NEXT = frozenset({"dd", "dt", "li", "p", "td", "th", "tr"})
_ITEM_OF = {"li": frozenset({"ul", "ol", "menu", "dir"}), "dd": frozenset({"blockquote", "table"})}


def lay_out(html: str, layout: TextLayout) -> None:
    """Write the text of ``html`` to ``layout``.

    An end tag closes what is open inside its element; ``li``, ``dd`` and ``a`` also end where the next one begins.
    Takes time in proportion to the length, whatever the input.
    """
    _TagReader(html, layout).read()


class _TagReader:
    def __init__(self, html: str, layout: TextLayout) -> None:
        self._html = html
        self._layout = layout
        self._open: list[str] = []
        self._counts: Counter[str] = Counter()
        self._unseen = ""  # the element whose content is left out at the moment
        self._unseen_depth = 0

    def read(self) -> None:
        position = 0
        literal = False
        for tag in read_tags(self._html):
            self._write(position, tag.start, literal=literal)
            position, literal = tag.end, tag.literal
            if tag.kind == "cdata":
                self._write(tag.inner_start, tag.inner_end, literal=True)
            elif tag.kind != "comment" and tag.complete:
                self._take(tag)
        self._write(position, len(self._html), literal=literal)
        while self._open:
            self._leave(self._open.pop())

    def _write(self, start: int, end: int, *, literal: bool) -> None:
        if start < end and not self._unseen:
            text = self._html[start:end].replace("\0", "")
            self._layout.write(text if literal else unescape(text))

    def _take(self, tag: Tag) -> None:
        if self._unseen:
            self._pass_over(tag)
        if self._unseen:
            return
        if tag.kind == "end":
            self._close(tag.name)
        else:
            self._begin(tag)

    def _pass_over(self, tag: Tag) -> None:
        if tag.name != self._unseen:
            return
        if tag.kind == "end":
            self._unseen_depth -= 1
        elif tag.name in _ENDED_BY_THE_NEXT:
            self._unseen_depth = 0
        elif not tag.self_closing:
            self._unseen_depth += 1
        if self._unseen_depth == 0:
            self._unseen = ""

    def _begin(self, tag: Tag) -> None:
        name = tag.name
        values = self._attributes(tag)
        if name == "base":
            self._layout.set_base(values.get("href", ""))
        if name in DROPPED or is_left_out(name, values):
            if name not in _NEVER_CLOSED and not (tag.self_closing and name in ("svg", "math")):
                self._unseen, self._unseen_depth = name, 1
            return
        self._end_before(name)
        if name in _KEPT_OPEN:
            if len(self._open) >= _MOST_OPEN:
                return
            self._open.append(name)
            self._counts[name] += 1
        if name == "area" and values.get("href"):
            self._layout.write_link(values["href"], values.get("alt", ""))
        elif name in BY_ATTRIBUTE:
            attribute, read = BY_ATTRIBUTE[name]
            read(self._layout, values.get(attribute, ""))
        elif name in ON_ENTERING:
            ON_ENTERING[name](self._layout)

    def _attributes(self, tag: Tag) -> dict[str, str]:
        values: dict[str, str] = {}
        if tag.inner_start < tag.inner_end:
            for attribute, _ in zip(attributes(self._html, tag), range(MOST_ATTRIBUTES), strict=False):
                if attribute.name not in values:
                    values[attribute.name] = attribute_text(attribute.value)
        return values

    def _end_before(self, name: str) -> None:
        if not self._counts[name]:
            return
        if name == "a":
            if self._open[-1] == "a":
                self._close("a")
            return
        for opened in reversed(self._open):
            if opened == name and name in _ITEM_OF:
                self._close(name)
            if opened == name or opened in _ITEM_OF.get(name, ()):
                return

    def _close(self, name: str) -> None:
        if name not in _KEPT_OPEN:
            self._leave(name)
            return
        if not self._counts[name]:
            return
        while True:
            opened = self._open.pop()
            self._counts[opened] -= 1
            self._leave(opened)
            if opened == name:
                return

    def _leave(self, name: str) -> None:
        if name in ON_LEAVING:
            ON_LEAVING[name](self._layout)
