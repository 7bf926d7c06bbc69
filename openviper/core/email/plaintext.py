"""Plain text from HTML: what a reader of the text part needs to see, links included."""

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from openviper.core.email.plaintext_layout import TextLayout

__all__ = ["html_to_text"]

_DROPPED = frozenset(
    "script style template title meta link noembed noframes iframe object embed svg math audio video canvas select "
    "datalist input textarea map".split()
)
_LINE_BLOCKS = frozenset(
    "address article aside body caption center details dialog dir dd div dt fieldset figcaption figure footer form "
    "header hgroup legend li main menu nav section summary tr".split()
)
_PARAGRAPHS = frozenset("blockquote dl h1 h2 h3 h4 h5 h6 ol p pre ul".split())
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_MAYBE_HIDDEN = '[hidden],[style*="display" i],[style*="visibility" i]'

# The parser looks through the open elements at many tags, so its time grows with the square of the nesting. Documents
# with fewer tags than this take milliseconds whatever they are; the others are made flatter first.
_FEW_TAGS = 2_000
_DEPTH = 250
_TAG = re.compile(r"<(/?)([a-z][a-z0-9:-]*)[^<>]*>?", re.IGNORECASE)
_NEVER_DEEP = frozenset(
    "area base br col embed hr img input link meta param source track wbr "  # no content
    "p li td th tr dt dd tbody thead tfoot colgroup option body html head".split()  # often left unclosed
)


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
    parser = LexborHTMLParser(_flattened(html) if html.count("<") > _FEW_TAGS else html)
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
    match tag:
        case "a":
            layout.open_link(node.attributes.get("href") or "")
        case "br":
            layout.end_line()
        case "img":
            layout.write(node.attributes.get("alt") or "")
        case "hr":
            layout.rule()
        case "li":
            layout.open_item(_number(node.attributes.get("value")))
        case "ol":
            layout.open_list(first=_number(node.attributes.get("start"), default=1))
        case "ul" | "menu" | "dir":
            layout.open_list(first=None)
        case "blockquote":
            layout.open_quote()
        case "dd":
            layout.open_indent()
        case "pre":
            layout.open_pre()
        case "table":
            layout.open_table(for_layout=(node.attributes.get("role") or "").lower() in {"presentation", "none"})
        case "tr":
            layout.open_row()
        case "td" | "th":
            layout.open_cell()
        case "q":
            layout.write('"')
        case _ if tag in _PARAGRAPHS:
            layout.separate(2)
        case _ if tag in _LINE_BLOCKS:
            layout.separate(1)


def _leave(tag: str, layout: TextLayout) -> None:
    match tag:
        case "a":
            layout.close_link()
        case "li" | "dd":
            layout.close_indent()
        case "ol" | "ul" | "menu" | "dir":
            layout.close_list()
        case "blockquote":
            layout.close_quote()
        case "pre":
            layout.close_pre()
        case "table":
            layout.close_table()
        case "q":
            layout.write('"')
        case _ if tag in _PARAGRAPHS:
            layout.separate(2)
        case _ if tag in _LINE_BLOCKS:
            layout.separate(1)


def _number(value: str | None, default: int | None = None) -> int | None:
    text = (value or "").strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else default


def _flattened(html: str) -> str:
    """``html`` without the start tags that lie deeper than `_DEPTH` open elements."""
    depth = 0
    kept: list[str] = []
    copied = 0
    for match in _TAG.finditer(html):
        if match[2].lower() in _NEVER_DEEP:
            continue
        if match[1]:
            depth = max(depth - 1, 0)
        elif depth < _DEPTH:
            depth += 1
        else:
            kept.append(html[copied : match.start()])
            copied = match.end()
    kept.append(html[copied:])
    return "".join(kept)
