"""Bound how deep a document nests, before a parser that works by recursion or by long searches reads it."""

from collections import Counter
from collections.abc import Collection
from itertools import islice

from openviper.markup.foreign import BREAKOUT, INTEGRATION_POINTS, LOOK_BACK
from openviper.markup.tags import RAW_TEXT, Tag, attributes, read_tags

__all__ = ["DEEPEST", "MOST_ATTRIBUTES", "describe_excess"]

DEEPEST = 250
"""Open elements at a time. css-inline needs 830 bytes of stack for each: 250 fit into a thread of 256 kB."""

MOST_ATTRIBUTES = 500
"""Attributes of one tag; parsers compare each with all those before it."""

# A tag opens at most these elements in a parser: itself, with tbody and tr implied.
_ELEMENTS_OF_A_TAG = 4
# How many open elements an end tag is compared with. The adoption agency moves at most 8 blocks.
_LOOK_BACK = 8

_VOID = frozenset(
    {"area", "base", "basefont", "bgsound", "br", "embed", "frame", "hr", "image", "img", "input", "keygen"}
    | {"link", "meta", "param", "source", "track", "wbr", "html", "head", "body"}
)
_LISTS = frozenset({"ul", "ol", "dl", "menu", "dir"})
_ITEMS = frozenset({"li", "dd", "dt"})
_FORMATTING = frozenset(
    {"a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"}
)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "button", "center", "details", "dialog", "div", "fieldset"}
    | {"figcaption", "figure", "footer", "header", "hgroup", "listing", "main", "nav", "pre", "search", "section"}
    | {"summary", "object", "applet", "marquee", *_LISTS}
)
_ENDS_PARAGRAPH = frozenset({*_BLOCKS, *_HEADINGS, *_ITEMS, "p", "form", "hr", "xmp"}) - {
    *("button", "object", "applet", "marquee")
}
# An end tag of an ordinary element does not reach past these.
_SPECIAL = frozenset({*_BLOCKS, *_HEADINGS, *_ITEMS, "p", "form", "noscript", "select", "svg", "math"})
_SCOPED = frozenset({*_BLOCKS, *_ITEMS, "p"})
_SCOPES = {"li": frozenset({"ul", "ol"}), "p": frozenset({"button"})}  # which they do not reach past
_PASSED_BY_ITEMS = frozenset({"address", "div", "p"})
# Parsers end one of these before they open another, in ways that are not followed here.
_SELF_ENDING = {
    name: group
    for group in (
        ("button",),
        ("nobr",),
        ("form",),
        ("option", "optgroup"),
        ("rb", "rt", "rtc", "rp"),
        tuple(_HEADINGS),
    )
    for name in group
}
_SECTIONS = frozenset({"tbody", "thead", "tfoot"})
_CELLS = frozenset({"td", "th", "caption"})
_TABLE_PARTS = frozenset({"table", "tr", "col", "colgroup", *_SECTIONS, *_CELLS})
_COLUMNS = frozenset({"col", "colgroup"})
_BELOW_TABLE = frozenset({"tr", *_SECTIONS, *_CELLS})
_ENDED_BY = {"tr": frozenset({"tr", *_CELLS}), "td": _CELLS, "th": _CELLS}
_MARKERS = frozenset({"object", "applet", "marquee"})
_BARRIERS = frozenset({*_TABLE_PARTS, *_MARKERS, "select", "svg", "math"})
# Parsers differ in what these do, so their nesting is not followed.
_UNBOUNDED = frozenset({"frameset", "template", "plaintext"})
_ALLOWED_IN_SELECT = frozenset({"option", "optgroup", "hr"})


def describe_excess(html: str) -> str | None:
    """Say what in ``html`` is too much for a native parser, for an error message; None for what may be parsed.

    Counts at least as many open elements as a parser has, and refuses markup whose nesting depends on the parser.
    Takes time in proportion to the length, whatever the input.
    """
    if html.count("<") * _ELEMENTS_OF_A_TAG <= DEEPEST and len(html) <= 2 * MOST_ATTRIBUTES:
        return None
    excess = _measure(html, scripting=False)
    if excess is None and "<noscript" in html.lower():
        excess = _measure(html, scripting=True)
    return excess


def _measure(html: str, *, scripting: bool) -> str | None:
    elements = _OpenElements()
    for tag in read_tags(html, scripting=scripting):
        if tag.name and _has_too_many_attributes(html, tag):
            return f"<{tag.name[:40]}> in {_line(html, tag)} has more than {MOST_ATTRIBUTES} attributes"
        if tag.kind == "start":
            elements.open(tag)
        elif tag.kind == "end":
            elements.close(tag.name)
        elif tag.kind == "cdata" and not elements.foreign:
            elements.unclear = True
        if elements.unclear:
            where = f"<{tag.name[:40]}> in {_line(html, tag)}"
            return f"{where} stands where parsers differ in what it nests in"
        if elements.depth > DEEPEST:
            name, count = elements.most_frequent()
            return f"elements nest more than {DEEPEST} deep at {_line(html, tag)}, {count} of them <{name[:40]}>"
    return None


def _has_too_many_attributes(html: str, tag: Tag) -> bool:
    if tag.inner_end - tag.inner_start <= 2 * MOST_ATTRIBUTES:
        return False
    return next(islice(attributes(html, tag), MOST_ATTRIBUTES, None), None) is not None


def _line(html: str, tag: Tag) -> str:
    return f"line {html.count(chr(10), 0, tag.start) + 1}"


class _OpenElements:
    """The elements that a parser may have open; one that is not sure to be closed stays counted.

    While the markup is regular the list is exact, but for formatting elements, which parsers open again until their
    own end tag comes. After irregular markup the elements that were open are ``_unsure``: a parser may have closed
    them. An end tag then takes out one element of its name and nothing of what stands above it.
    """

    def __init__(self) -> None:
        self.foreign = False  # inside svg or math
        self.unclear = False
        self._open: list[str] = []
        self._unsure = 0  # how many of them, from the outermost inwards
        self._tables: list[int] = []  # where in ``_open`` the parts of tables stand
        self._counts: Counter[str] = Counter()
        self._crowded: set[str] = set()  # parsers forget formatting elements when four are alike
        self._root = 0  # where in ``_open`` the outermost foreign element stands
        self._point = ""  # an integration point that has to end at once

    @property
    def depth(self) -> int:
        """Return how many elements are open."""
        return len(self._open)

    def most_frequent(self) -> tuple[str, int]:
        """Return the name that most open elements have, and how many those are."""
        return Counter(self._open).most_common(1)[0]

    def open(self, tag: Tag) -> None:
        """Take a start tag."""
        name = tag.name
        if self.foreign:
            self._open_foreign(tag)
        elif name in _UNBOUNDED or (self._counts["select"] and name not in _ALLOWED_IN_SELECT):
            self.unclear = True
        elif name in _TABLE_PARTS:
            self._open_table_part(name)
        else:
            if name in _ITEMS:
                self._close_item(name)
            if name in _ENDS_PARAGRAPH and self._counts["p"]:
                self._close("p", past=_SPECIAL - {"button"})
            if name in _VOID or name in RAW_TEXT:
                return
            self._push_element(name, self_closing=tag.self_closing)

    def close(self, name: str) -> None:
        """Take an end tag."""
        if self.foreign:
            self._close_foreign(name)
        elif name in _TABLE_PARTS:
            self._close_table_part(name)
        elif self._counts["select"]:
            if name == "select":
                self._close_select()
        elif name in _HEADINGS:
            self._close_any(_HEADINGS, past=_SPECIAL)
        elif self._counts[name]:
            self._close_named(name)

    def _close_named(self, name: str) -> None:
        if name == "form":
            self._unsure = len(self._open)  # parsers close the form that they remember, if any
        elif name in _FORMATTING:
            self._close_formatting(name)
        elif name in _SCOPED:
            self._close(name, past=_SPECIAL - _SCOPES.get(name, frozenset()))
        else:
            self._close(name, past=frozenset())

    def _close_select(self) -> None:
        index = len(self._open) - 1 - self._open[::-1].index("select")
        self._clear_above(index)
        self._discard(index)

    def _push_element(self, name: str, *, self_closing: bool) -> None:
        if name in ("svg", "math"):
            if self_closing:
                return
            self.foreign = True
            self._root = len(self._open)
        elif name == "a":
            if self._counts["a"]:
                self._close_formatting("a")
        elif name in _FORMATTING and self._counts[name] > 2:
            self._crowded.add(name)
        if any(self._counts[other] for other in _SELF_ENDING.get(name, ())):
            self._unsure = len(self._open)
        self._push(name)

    def _push(self, name: str) -> None:
        self._open.append(name)
        self._counts[name] += 1

    def _discard(self, index: int) -> None:
        self._counts[self._open.pop(index)] -= 1
        self._unsure = min(self._unsure, len(self._open))

    def _close(self, name: str, *, past: frozenset[str]) -> None:
        self._close_any((name,), past=past)

    def _close_any(self, names: Collection[str], *, past: frozenset[str]) -> None:
        """Close the innermost of ``names``, if only ordinary elements and those of ``past`` stand above it."""
        for index in self._reachable():
            opened = self._open[index]
            if opened in names:
                if index >= self._unsure:
                    self._clear_above(index)
                    self._discard(index)
                else:
                    self._take_out(index)
                return
            if opened in _BARRIERS or (opened in _SPECIAL and opened not in past):
                if index >= self._unsure:
                    return  # exactly as in a parser
                break
        self._unsure = len(self._open)

    def _close_item(self, name: str) -> None:
        self._close_any(("li",) if name == "li" else ("dd", "dt"), past=_PASSED_BY_ITEMS)

    def _close_formatting(self, name: str) -> None:
        for index in self._reachable():
            opened = self._open[index]
            if opened == name:
                self._take_out(index)
                return
            if opened in _BARRIERS or (opened in _SPECIAL and name in self._crowded):
                break
        self._unsure = len(self._open)

    def _take_out(self, index: int) -> None:
        self._discard(index)
        if index < len(self._open):
            self._unsure = len(self._open)

    def _reachable(self) -> range:
        size = len(self._open)
        return range(size - 1, max(size - 1 - _LOOK_BACK, -1), -1)

    def _open_foreign(self, tag: Tag) -> None:
        name = tag.name
        if self._point or name in BREAKOUT or name == "font":
            self.unclear = True
        elif not tag.self_closing:
            if name in INTEGRATION_POINTS:
                self._point = name
            self._push(name)
            self.unclear = len(self._open) - self._root >= LOOK_BACK

    def _close_foreign(self, name: str) -> None:
        above = self._open[self._root :]
        if name not in above or (self._point and name != self._point):
            self.unclear = True
            return
        self._point = ""
        index = self._root + len(above) - 1 - above[::-1].index(name)
        if index == self._root:
            self.foreign = False
            self._clear_above(index, in_cell=True)
            self._discard(index)
        else:
            self._discard(index)

    def _open_table_part(self, name: str) -> None:
        if name == "table":
            if self._tables and self._innermost() not in _CELLS:
                self._close_table()
            self._push_table_part("table")
        elif self._tables:
            above = _ENDED_BY.get(name, _BELOW_TABLE)
            while (innermost := self._innermost()) in above:
                self._close_innermost()
            self._clear_above(self._tables[-1])
            if name in _COLUMNS:
                return
            if name in ("tr", "td", "th") and innermost == "table":
                self._push_table_part("tbody")
            if name in ("td", "th") and innermost != "tr":
                self._push_table_part("tr")
            self._push_table_part(name)

    def _close_table_part(self, name: str) -> None:
        if self._counts["select"]:
            self.unclear = True
        elif name in _COLUMNS or not self._tables:
            return
        elif name == "table":
            self._close_table()
        elif name in _CELLS:
            if self._innermost() == name:
                self._close_innermost()
        elif name in self._parts_of_table():
            while self._innermost() != name:
                self._close_innermost()
            self._close_innermost()

    def _innermost(self) -> str:
        return self._open[self._tables[-1]]

    def _parts_of_table(self) -> list[str]:
        parts: list[str] = []
        for index in reversed(self._tables):
            if self._open[index] == "table":
                break
            parts.append(self._open[index])
        return parts

    def _push_table_part(self, name: str) -> None:
        self._tables.append(len(self._open))
        self._push(name)

    def _close_table(self) -> None:
        while self._innermost() != "table":
            self._close_innermost()
        self._close_innermost()

    def _close_innermost(self) -> None:
        index = self._tables.pop()
        in_cell = self._open[index] in _CELLS
        self._clear_above(index, in_cell=in_cell)
        self._discard(index)

    def _clear_above(self, index: int, *, in_cell: bool = False) -> None:
        # Formatting outside cells is opened again behind the table; in a cell it ends with the cell.
        above = self._open[index + 1 :]
        if not _MARKERS.isdisjoint(above):
            self.unclear = True
        kept = [] if in_cell else [name for name in above if name in _FORMATTING]
        while len(self._open) > index + 1:
            self._discard(len(self._open) - 1)
        for name in kept:
            self._push(name)
