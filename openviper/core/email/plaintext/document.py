"""Plain text from HTML: what a reader of the text part needs to see, links included."""

import re
from collections.abc import Callable

from selectolax.lexbor import LexborHTMLParser, LexborNode

from openviper.core.email.plaintext.flattening import flattened
from openviper.core.email.plaintext.layout import TextLayout

__all__ = ["html_to_text"]

_DROPPED = frozenset(
    {"script", "style", "template", "title", "meta", "link", "noembed", "noframes", "iframe", "object", "embed", "svg"}
    | {"math", "audio", "video", "canvas", "select", "datalist", "input", "textarea", "map"}
)
_LINE_BLOCKS = frozenset(
    {"address", "article", "aside", "caption", "center", "details", "dialog", "div", "dt", "fieldset", "figcaption"}
    | {"figure", "footer", "form", "header", "hgroup", "legend", "main", "nav", "section", "summary", "tr"}
)
_PARAGRAPHS = frozenset(("dl", "h1", "h2", "h3", "h4", "h5", "h6", "p"))
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_MAYBE_HIDDEN = '[hidden],[style*="display" i],[style*="visibility" i]'


def html_to_text(html: str) -> str:
    """Return ``html`` as plain text: ``\\n`` line ends, no trailing blanks, no final line end, ``""`` for no text.

    Links become ``text (url)``, and only the text where it already is the address; lists keep their bullets, numbers
    and nesting, quotations get ``> ``, ``pre`` keeps its lines, images give their alternative text. The cells of a
    row stand in one line (``a | b``) unless the table is there for the layout: with ``role="presentation"``, with
    another table in it, or with cells of several lines. What HTML readers do not see is left out: head, styles,
    scripts, comments, and elements with ``hidden``, ``display: none`` or ``visibility: hidden``, so also the preview
    text (preheader) that newsletters hide at the top.

    Never fails, whatever the input; the time grows in proportion to its length.
    """
    if not html or html.isspace():
        return ""
    parser = LexborHTMLParser(flattened(html))
    body = parser.body
    if body is None:
        return ""
    hidden = {
        node.mem_id
        for node in parser.css(_MAYBE_HIDDEN)
        if "hidden" in (attributes := node.attributes) or _HIDDEN.search(attributes.get("style") or "")
    }
    layout = TextLayout()
    _walk(body, layout, hidden)
    return layout.text()


def _walk(body: LexborNode, layout: TextLayout, hidden: set[int]) -> None:
    """Visit every node in document order; a loop, because documents may be nested deeper than Python may recurse."""
    node: LexborNode | None = body
    depth = 0  # below body; nodes are not compared, because their equality compares their whole contents
    while node is not None:
        tag = node.tag or ""
        child = None
        if tag == "-text":
            layout.write(node.text_content or "")
        elif tag not in _DROPPED and tag[0:1] != "-" and not (hidden and node.mem_id in hidden):
            _enter(node, tag, layout)
            child = node.first_child
            if child is None:
                _leave(tag, layout)
        if child is not None:
            depth += 1
            node = child
            continue
        while depth and (following := node.next) is None:
            depth -= 1
            parent = node.parent
            assert parent is not None
            node = parent
            _leave(node.tag or "", layout)
        node = following if depth else None


def _enter(node: LexborNode, tag: str, layout: TextLayout) -> None:
    action = _ON_ENTERING.get(tag)
    if action is not None:
        action(node, layout)


def _leave(tag: str, layout: TextLayout) -> None:
    action = _ON_LEAVING.get(tag)
    if action is not None:
        action(layout)


def _link(node: LexborNode, layout: TextLayout) -> None:
    layout.open_link(node.attributes.get("href") or "")


def _image(node: LexborNode, layout: TextLayout) -> None:
    layout.write(node.attributes.get("alt") or "")


def _item(node: LexborNode, layout: TextLayout) -> None:
    layout.open_item(_number(node.attributes.get("value"), default=None))


def _numbered(node: LexborNode, layout: TextLayout) -> None:
    layout.open_list(first=_number(node.attributes.get("start"), default=1))


def _table(node: LexborNode, layout: TextLayout) -> None:
    role = (node.attributes.get("role") or "").strip().lower()
    layout.open_table(for_layout=role in {"presentation", "none"})


def _plainly(action: Callable[[TextLayout], None]) -> Callable[[LexborNode, TextLayout], None]:
    return lambda _node, layout: action(layout)


def _bullets(layout: TextLayout) -> None:
    layout.open_list(first=None)


def _line(layout: TextLayout) -> None:
    layout.separate(1)


def _paragraph(layout: TextLayout) -> None:
    layout.separate(2)


def _quote_mark(layout: TextLayout) -> None:
    layout.write('"')


_ON_ENTERING: dict[str, Callable[[LexborNode, TextLayout], None]] = {
    **dict.fromkeys(_LINE_BLOCKS, _plainly(_line)),
    **dict.fromkeys(_PARAGRAPHS, _plainly(_paragraph)),
    **dict.fromkeys(("ul", "menu", "dir"), _plainly(_bullets)),
    **dict.fromkeys(("td", "th"), _plainly(TextLayout.open_cell)),
    "a": _link,
    "blockquote": _plainly(TextLayout.open_quote),
    "br": _plainly(TextLayout.end_line),
    "dd": _plainly(TextLayout.open_indent),
    "hr": _plainly(TextLayout.rule),
    "img": _image,
    "li": _item,
    "ol": _numbered,
    "pre": _plainly(TextLayout.open_pre),
    "q": _plainly(_quote_mark),
    "table": _table,
    "tr": _plainly(TextLayout.open_row),
}
_ON_LEAVING: dict[str, Callable[[TextLayout], None]] = {
    **dict.fromkeys(_LINE_BLOCKS, _line),
    **dict.fromkeys(_PARAGRAPHS, _paragraph),
    **dict.fromkeys(("ol", "ul", "menu", "dir"), TextLayout.close_list),
    **dict.fromkeys(("li", "dd"), TextLayout.close_indent),
    "a": TextLayout.close_link,
    "blockquote": TextLayout.close_quote,
    "pre": TextLayout.close_pre,
    "q": _quote_mark,
    "table": TextLayout.close_table,
}


def _number(value: str | None, *, default: int | None) -> int | None:
    text = (value or "").strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else default
