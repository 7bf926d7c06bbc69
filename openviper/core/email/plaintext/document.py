"""Plain text from HTML: what a reader of the text part needs to see, links included."""

import re
from collections.abc import Callable

from selectolax.lexbor import LexborAttributes, LexborHTMLParser, LexborNode

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
_MAYBE_HIDDEN = '[hidden],[style*="display" i][style*="none" i],[style*="visibility" i][style*="hidden" i]'


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
    node = body
    open_elements: list[tuple[LexborNode, Callable[[TextLayout], None]]] = []  # each with what to do at its end
    while True:
        tag = node.tag or "-"
        if tag == "-text":
            layout.write(node.text_content or "")
        elif tag[0] != "-" and tag not in _DROPPED and not (hidden and node.mem_id in hidden):
            if (begin := _ON_ENTERING.get(tag)) is not None:
                begin(layout)
            elif (read := _BY_ATTRIBUTES.get(tag)) is not None:
                read(layout, node.attrs)
            leave = _ON_LEAVING.get(tag, _nothing)
            child = node.first_child
            if child is not None:
                open_elements.append((node, leave))
                node = child
                continue
            leave(layout)
        while open_elements:
            following = node.next
            if following is not None:
                break
            node, leave = open_elements.pop()
            leave(layout)
        else:
            return
        node = following


def _link(layout: TextLayout, attributes: LexborAttributes) -> None:
    layout.open_link(attributes.sget("href"))


def _image(layout: TextLayout, attributes: LexborAttributes) -> None:
    layout.write(attributes.sget("alt"))


def _item(layout: TextLayout, attributes: LexborAttributes) -> None:
    layout.open_item(_number(attributes.sget("value"), default=None))


def _numbered(layout: TextLayout, attributes: LexborAttributes) -> None:
    layout.open_list(first=_number(attributes.sget("start"), default=1))


def _table(layout: TextLayout, attributes: LexborAttributes) -> None:
    layout.open_table(for_layout=attributes.sget("role").strip().lower() in {"presentation", "none"})


def _nothing(layout: TextLayout) -> None:
    """For elements whose end says nothing."""


def _quote_mark(layout: TextLayout) -> None:
    layout.write('"')


_ON_ENTERING: dict[str, Callable[[TextLayout], None]] = {
    **dict.fromkeys(_LINE_BLOCKS, TextLayout.begin_line),
    **dict.fromkeys(_PARAGRAPHS, TextLayout.begin_paragraph),
    **dict.fromkeys(("ul", "menu", "dir"), TextLayout.open_list),
    **dict.fromkeys(("td", "th"), TextLayout.open_cell),
    "blockquote": TextLayout.open_quote,
    "br": TextLayout.end_line,
    "dd": TextLayout.open_indent,
    "hr": TextLayout.rule,
    "pre": TextLayout.open_pre,
    "q": _quote_mark,
    "tr": TextLayout.open_row,
}
_BY_ATTRIBUTES: dict[str, Callable[[TextLayout, LexborAttributes], None]] = {
    "a": _link,
    "img": _image,
    "li": _item,
    "ol": _numbered,
    "table": _table,
}
_ON_LEAVING: dict[str, Callable[[TextLayout], None]] = {
    **dict.fromkeys(_LINE_BLOCKS, TextLayout.begin_line),
    **dict.fromkeys(_PARAGRAPHS, TextLayout.begin_paragraph),
    **dict.fromkeys(("ol", "ul", "menu", "dir"), TextLayout.close_list),
    **dict.fromkeys(("li", "dd"), TextLayout.close_indent),
    "a": TextLayout.close_link,
    "blockquote": TextLayout.close_quote,
    "pre": TextLayout.close_pre,
    "q": _quote_mark,
    "table": TextLayout.close_table,
}


def _number(value: str, *, default: int | None) -> int | None:
    text = value.strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else default
