"""Follow SVG and MathML, inside which tags are read by other rules (WHATWG HTML, section 13.2.6.5)."""

import re

__all__ = ["BREAKOUT", "INTEGRATION_POINTS", "LOOK_BACK", "ForeignContent"]

BREAKOUT = frozenset(
    {"b", "big", "blockquote", "body", "br", "center", "code", "dd", "div", "dl", "dt", "em", "embed", "h1", "h2"}
    | {"h3", "h4", "h5", "h6", "head", "hr", "i", "img", "li", "listing", "menu", "meta", "nobr", "ol", "p", "pre"}
    | {"ruby", "s", "small", "span", "strong", "strike", "sub", "sup", "table", "tt", "u", "ul", "var"}
)
"""Start tags that end the foreign content around them; ``font`` does with an attribute of its own."""

_SVG_POINTS = frozenset({"foreignobject", "desc", "title"})
_MATH_POINTS = frozenset({"mi", "mo", "mn", "ms", "mtext"})
INTEGRATION_POINTS = _SVG_POINTS | _MATH_POINTS | {"annotation-xml"}
"""Foreign elements that may hold HTML again."""

_FONT = re.compile(r"[\t\n\f\r /](?:color|face|size)(?=[\t\n\f\r />=]|\Z)", re.IGNORECASE | re.ASCII)
_HTML_ENCODING = re.compile(
    r"[\t\n\f\r /]encoding[\t\n\f\r ]*=[\t\n\f\r ]*[\"']?(?:text/html|application/xhtml\+xml)(?=[\"'\t\n\f\r >]|\Z)",
    re.IGNORECASE | re.ASCII,
)
_VOID = frozenset(
    {"area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "image", "img", "input", "keygen"}
    | {"link", "meta", "param", "source", "track", "wbr", "html", "head", "body"}
)
_HTML, _POINT, _TEXT_POINT, _FOREIGN = range(4)
LOOK_BACK = 64
"""Open elements that an end tag is compared with, so that the time stays proportional to the length."""


class ForeignContent:
    """The open elements from the outermost ``svg`` or ``math`` inwards, as far as tags are read differently there."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: list[tuple[str, int, str]] = []  # name, kind and namespace

    @property
    def active(self) -> bool:
        """True while the innermost open element is a foreign one, where CDATA sections are."""
        return bool(self._open) and self._open[-1][1] != _HTML

    def open(self, name: str, html: str, inner: tuple[int, int], *, self_closing: bool) -> bool:
        """Take a start tag whose attributes are ``html[slice(*inner)]``; True if it opens a foreign element."""
        stack = self._open
        if not stack:
            if name not in ("svg", "math"):
                return False
        elif self._reads_foreign(name):
            if name in BREAKOUT or (name == "font" and _FONT.search(html, *inner)):
                while stack and stack[-1][1] == _FOREIGN:
                    stack.pop()
                return self._open_html(name)
        elif name not in ("svg", "math"):
            return self._open_html(name)
        if not self_closing:
            stack.append(self._foreign(name, html, inner))
        return True

    def close(self, name: str) -> None:
        """Take an end tag."""
        stack = self._open
        if not stack:
            return
        if name in ("p", "br") and stack[-1][1] == _FOREIGN:
            while stack and stack[-1][1] == _FOREIGN:
                stack.pop()
        if not stack:
            return
        in_html = stack[-1][1] == _HTML
        for depth in range(1, min(len(stack), LOOK_BACK) + 1):
            opened, kind, _ = stack[-depth]
            if opened == name:
                del stack[-depth:]
                return
            if (kind == _HTML) != in_html:
                return

    def _reads_foreign(self, name: str) -> bool:
        kind = self._open[-1][1]
        if kind == _TEXT_POINT:
            return name in ("mglyph", "malignmark")
        return kind == _FOREIGN and not (self._open[-1][0] == "annotation-xml" and name == "svg")

    def _open_html(self, name: str) -> bool:
        if self._open and name not in _VOID:
            self._open.append((name, _HTML, ""))
        return False

    def _foreign(self, name: str, html: str, inner: tuple[int, int]) -> tuple[str, int, str]:
        # Inside foreign content elements of any name have the namespace of what is around them.
        namespace = self._open[-1][2] if self._open and self._reads_foreign(name) else name
        kind = _FOREIGN
        if namespace == "svg" and name in _SVG_POINTS:
            kind = _POINT
        elif namespace == "math" and name in _MATH_POINTS:
            kind = _TEXT_POINT
        elif namespace == "math" and name == "annotation-xml" and _HTML_ENCODING.search(html, *inner):
            kind = _POINT
        return name, kind, namespace
