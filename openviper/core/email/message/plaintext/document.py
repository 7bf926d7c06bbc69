"""Convert HTML to plain text that keeps what a reader needs, links included."""

from selectolax.lexbor import LexborHTMLParser, LexborNode

from openviper.core.email.message.plaintext.elements import (
    BY_ATTRIBUTE,
    DROPPED,
    HIDDEN,
    ON_ENTERING,
    ON_LEAVING,
    Reading,
    Step,
)
from openviper.core.email.message.plaintext.layout import TextLayout
from openviper.core.email.message.plaintext.tagwise import lay_out
from openviper.markup import describe_excess

__all__ = ["html_to_text"]

# What to do at an element's start, or which attribute to read there and what to do with it; and what at its end.
_Element = tuple[Step | None, str, Reading | None, Step | None]
# The parser looks through the open elements at many tags, and through the attributes of a tag at each of them, so its
# time may grow with the square of the length. Below these sizes it takes milliseconds, whatever the document.
_FEW_TAGS = 2_000
_SHORT = 32 * 1024
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
    layout = TextLayout()
    if (len(html) > _SHORT or html.count("<") > _FEW_TAGS) and describe_excess(html) is not None:
        lay_out(html, layout)
        return layout.text()
    parser = LexborHTMLParser(html)
    body = parser.body
    if body is None:
        return ""
    hidden = {
        node.mem_id
        for node in parser.css(_MAYBE_HIDDEN)
        if "hidden" in (attributes := node.attributes) or HIDDEN.search(attributes.get("style") or "")
    }
    _walk(body, layout, hidden)
    return layout.text()


def _walk(body: LexborNode, layout: TextLayout, hidden: set[int]) -> None:
    """Visit every node in document order, in a loop: documents may nest deeper than Python recurses."""
    node = body
    open_elements: list[tuple[LexborNode, Step | None]] = []  # each with what to do at its end
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
