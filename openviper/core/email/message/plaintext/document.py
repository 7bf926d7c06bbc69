"""Plain text from HTML: what a reader of the text part needs to see, links included."""

import re
from collections.abc import Callable

from selectolax.lexbor import LexborHTMLParser, LexborNode

from openviper.core.email.message.plaintext.flattening import flattened
from openviper.core.email.message.plaintext.layout import TextLayout

__all__ = ["html_to_text"]

_Step = Callable[[TextLayout], None]
_Reading = Callable[[TextLayout, str], None]
# What to do at an element's start, or which attribute to read there and what to do with it; and what at its end.
_Element = tuple[_Step | None, str, _Reading | None, _Step | None]

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
    open_elements: list[tuple[LexborNode, _Step | None]] = []  # each with what to do at its end
    write, element_of = layout.write, _ELEMENTS.get
    while True:
        if (text := node.text_content) is not None:
            write(text)
            following = node.next
        elif (element := element_of(node.tag_id, _INLINE)) is None or (hidden and node.mem_id in hidden):
            following = node.next
        else:
            enter, attribute, read, leave = element
            if enter is not None:
                enter(layout)
            elif read is not None:
                read(layout, node.attrs.sget(attribute))
            open_elements.append((node, leave))
            following = node.first_child
        while following is None:
            if not open_elements:
                return
            node, leave = open_elements.pop()
            if leave is not None:
                leave(layout)
            following = node.next
        node = following


def _item(layout: TextLayout, value: str) -> None:
    layout.open_item(_number(value, default=None))


def _numbered(layout: TextLayout, start: str) -> None:
    layout.open_list(first=_number(start, default=1))


def _table(layout: TextLayout, role: str) -> None:
    layout.open_table(for_layout=role.strip().lower() in {"presentation", "none"})


def _quote_mark(layout: TextLayout) -> None:
    layout.write('"')


def _number(value: str, *, default: int | None) -> int | None:
    text = value.strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else default


_ON_ENTERING: dict[str, _Step] = {
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
_BY_ATTRIBUTE: dict[str, tuple[str, _Reading]] = {
    "a": ("href", TextLayout.open_link),
    "img": ("alt", TextLayout.write),
    "li": ("value", _item),
    "ol": ("start", _numbered),
    "table": ("role", _table),
}
_ON_LEAVING: dict[str, _Step] = {
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


def _by_tag_id() -> dict[int, _Element | None]:
    """What each element does, None for those that are dropped, by the number that the parser has for its tag.

    A node tells the number in a third of the time it needs for the name. The numbers differ between versions of the
    parser, so they come from a document with every tag in it: in a table, because cells exist nowhere else.
    """
    tags = sorted(_DROPPED | _ON_ENTERING.keys() | _BY_ATTRIBUTE.keys() | _ON_LEAVING.keys())
    elements = "".join(f"<{tag}></{tag}>" for tag in tags if tag != "table")
    numbers = {node.tag: node.tag_id for node in LexborHTMLParser(f"<table>{elements}</table>").css("*")}
    return {numbers[tag]: None if tag in _DROPPED else _element(tag) for tag in tags}


def _element(tag: str) -> _Element:
    attribute, read = _BY_ATTRIBUTE.get(tag, ("", None))
    return _ON_ENTERING.get(tag), attribute, read, _ON_LEAVING.get(tag)


_INLINE: _Element = (None, "", None, None)
_ELEMENTS = _by_tag_id()
