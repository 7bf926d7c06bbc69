"""Convert HTML to plain text that keeps what a reader needs, links included."""

import re
from functools import lru_cache, partial
from typing import NamedTuple

from selectolax.lexbor import LexborHTMLParser, LexborNode

from openviper.core.email.message.plaintext.elements import (
    BY_ATTRIBUTE,
    DROPPED,
    ON_ENTERING,
    ON_LEAVING,
    Reading,
    Step,
    is_left_out,
)
from openviper.core.email.message.plaintext.layout import TextLayout
from openviper.core.email.message.plaintext.tagwise import lay_out
from openviper.markup import declarations, describe_excess, is_hidden, is_zero

__all__ = ["html_to_text"]

# Steps for an element: at its start, or the attribute to read there with the step for its value; and at its end.
_Element = tuple[Step | None, str, Reading | None, Step | None]
# The parser looks through the open elements at many tags, and through the attributes of a tag at each of them, so its
# time may grow with the square of the length. Below these sizes it takes milliseconds, whatever the document.
_FEW_TAGS = 2_000
_SHORT = 32 * 1024
_INHERITED_SIZE = re.compile(r"[\d.+-]+(?:em|%)|inherit|unset|smaller|larger")


def html_to_text(html: str) -> str:
    """Return ``html`` as plain text: ``\\n`` line ends, no trailing blanks, no final line end, ``""`` for no text.

    Links become ``text (url)``, and only the text where it already is the address; lists keep their bullets, numbers
    and nesting, quotations get ``> ``, ``pre`` keeps its lines, images give their alternative text. The cells of a
    row stand in one line (``a | b``) unless the table is there for the layout: with ``role="presentation"``, with
    another table in it, or with cells of several lines; cells without text keep their places. Relative links start
    from ``<base href>``. What HTML readers do not see is left out: head, styles, scripts, comments, and elements that
    ``hidden`` or their ``style`` attribute hides (:func:`~openviper.markup.is_hidden`, or a font size of 0), so also
    the preview text (preheader) that newsletters hide at the top.

    Never fails, whatever the input; the time grows in proportion to its length.
    """
    if not html or html.isspace():
        return ""
    layout = TextLayout()
    if (len(html) > _SHORT or html.count("<") > _FEW_TAGS) and describe_excess(html) is not None:
        lay_out(html, layout)
        return layout.text()
    parser = LexborHTMLParser(html)
    body = parser.body
    if body is None:
        return ""
    _walk(body, layout, _exceptions(parser, layout))
    return layout.text()


def _exceptions(parser: LexborHTMLParser, layout: TextLayout) -> dict[int, _Element | None]:
    """Map nodes to what they do differently from their element; None for those that are left out."""
    found: dict[int, _Element | None] = {}
    around_visible = _around_visible(parser)
    styled: list[tuple[LexborNode, _Style]] = []
    for node in parser.css("[style]"):
        if (style := _style(node.attrs.sget("style"))) is None:
            continue
        if style.hidden and _is_left_out(node, around_visible):
            found[node.mem_id] = None
        else:
            styled.append((node, style))
    # Nearly every element has a font size; following them pays only where one is 0.
    sizes = any(style.size_zero for _, style in styled)
    for node, style in styled:
        zero = style.size_zero if sizes else None
        if zero is not None or style.white_space:
            begin = partial(TextLayout.open_style, white_space=style.white_space, font_size_zero=zero)
            found[node.mem_id] = _with(node, begin, TextLayout.close_style)
    for node in parser.css("[hidden],area[href],base[href]"):
        if _is_left_out(node, around_visible):
            found[node.mem_id] = None
        elif node.tag == "base":
            layout.set_base(node.attrs.sget("href"))
        elif node.tag == "area":
            link = partial(TextLayout.write_link, url=node.attrs.sget("href"), text=node.attrs.sget("alt"))
            found[node.mem_id] = (link, "", None, None)
    return found


def _with(node: LexborNode, begin: Step, end: Step) -> _Element | None:
    """Return what the element of ``node`` does, with ``begin`` after its start and ``end`` before its end."""
    element = _ELEMENTS.get(node.tag_id, _INLINE)
    if element is None:
        return None
    enter, attribute, read, leave = element
    value = node.attrs.sget(attribute) if read is not None else ""

    def enter_both(layout: TextLayout) -> None:
        if enter is not None:
            enter(layout)
        elif read is not None:
            read(layout, value)
        begin(layout)

    def leave_both(layout: TextLayout) -> None:
        end(layout)
        if leave is not None:
            leave(layout)

    return enter_both, "", None, leave_both


class _Style(NamedTuple):
    """The part of a ``style`` attribute that a text shows."""

    hidden: bool
    white_space: str
    size_zero: bool | None  # None where the font size is that of the element around, or a part of it


@lru_cache(maxsize=1024)
def _style(style: str) -> _Style | None:
    values = declarations(style)
    size = values.get("font-size", "")
    zero = True if is_zero(size) else False if size and not _INHERITED_SIZE.fullmatch(size) else None
    found = _Style(is_hidden(style), values.get("white-space", ""), zero)
    return None if found == (False, "", None) else found


def _around_visible(parser: LexborHTMLParser) -> set[int]:
    """Return the nodes around those that ``visibility: visible`` shows again, each visited once."""
    around: set[int] = set()
    for inner in parser.css('[style*="visibility" i][style*="visible" i]'):
        if declarations(inner.attrs.sget("style")).get("visibility") == "visible":
            node = inner.parent
            while node is not None and node.mem_id not in around:
                around.add(node.mem_id)
                node = node.parent
    return around


def _is_left_out(node: LexborNode, around_visible: set[int]) -> bool:
    """True unless the node is shown, or hidden by ``visibility`` alone and among ``around_visible``."""
    attributes, tag = node.attributes, node.tag or ""
    if not is_left_out(tag, attributes):
        return False
    values = declarations(attributes.get("style") or "")
    others = ";".join(f"{name}:{value}" for name, value in values.items() if name != "visibility")
    if is_left_out(tag, {**attributes, "style": others}):
        return True
    return node.mem_id not in around_visible


def _walk(body: LexborNode, layout: TextLayout, exceptions: dict[int, _Element | None]) -> None:
    """Visit every node in document order, in a loop: documents may nest deeper than Python recurses."""
    node = body
    open_elements: list[tuple[LexborNode, Step | None]] = []  # each with what to do at its end
    write, element_of = layout.write, _ELEMENTS.get
    while True:
        if (text := node.text_content) is not None:
            write(text)
            following = node.next
        elif (element := element_of(node.tag_id, _INLINE)) is None or (
            exceptions and (element := exceptions.get(node.mem_id, element)) is None
        ):
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


def _by_tag_id() -> dict[int, _Element | None]:
    """Map the parser's number of each tag to what its element does; None for elements that are dropped.

    Reading a node's number takes a third of the time of reading its name. The numbers differ between versions of the
    parser, so they come from a document with every tag in it: in a table, because cells exist nowhere else.
    """
    tags = sorted(DROPPED | ON_ENTERING.keys() | BY_ATTRIBUTE.keys() | ON_LEAVING.keys())
    elements = "".join(f"<{tag}></{tag}>" for tag in tags if tag != "table")
    numbers = {node.tag: node.tag_id for node in LexborHTMLParser(f"<table>{elements}</table>").css("*")}
    return {numbers[tag]: None if tag in DROPPED else _element(tag) for tag in tags}


def _element(tag: str) -> _Element:
    attribute, read = BY_ATTRIBUTE.get(tag, ("", None))
    return ON_ENTERING.get(tag), attribute, read, ON_LEAVING.get(tag)


_INLINE: _Element = (None, "", None, None)
_ELEMENTS = _by_tag_id()
