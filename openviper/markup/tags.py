"""Tokenise HTML as browsers do (WHATWG HTML, section 13.2.5), in time proportional to its length."""

import re
from collections.abc import Iterator
from html import unescape
from html.entities import html5
from typing import Literal, NamedTuple

from openviper.markup.foreign import ForeignContent

__all__ = ["RAW_TEXT", "Attribute", "Tag", "attribute_text", "attributes", "lower", "read_tags"]

# White space as HTML counts it: no vertical tab, which ``\s`` includes.
_SPACE = r"[\t\n\f\r ]"
_NAME = r"(?:=[^\t\n\f\r />=]*+|[^\t\n\f\r />=]++)"
# An attribute of a complete tag. Where a quotation mark opens a value that never ends, nothing matches.
_COMPLETE = (
    rf"{_NAME}(?:{_SPACE}*+={_SPACE}*+(?:\"[^\"]*+\"|'[^']*+'|[^\t\n\f\r >\"'][^\t\n\f\r >]*+|(?=>))|(?!{_SPACE}*+=))"
)
_MARKUP = re.compile(
    rf"<(?:(/?)([a-zA-Z][^\t\n\f\r />]*+)((?:[\t\n\f\r /]*+{_COMPLETE})*+)([\t\n\f\r /]*+)(>?+)"
    r"|(!--)|(!\[CDATA\[)|[!/?])"
)
_ATTRIBUTE = re.compile(rf"[\t\n\f\r /]*+({_NAME})(?:{_SPACE}*+={_SPACE}*+(\"[^\"]*+\"|'[^']*+'|[^\t\n\f\r >]*+))?+")
_COMMENT_END = re.compile(r"--!?>")
_REFERENCE = re.compile(r"&(?:#[0-9]+;?+|#[xX][0-9a-fA-F]+;?+|[a-zA-Z][a-zA-Z0-9]*+(?:;|(?!=)))")

RAW_TEXT = frozenset({"iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp"})
"""Elements whose content is text up to their own end tag."""

_RAW_END = {
    name: re.compile(rf"</{name}(?=[\t\n\f\r />])", re.ASCII | re.IGNORECASE) for name in {*RAW_TEXT, "noscript"}
}
_SCRIPT = re.compile(r"<!--|-->|<(/?)script(?=[\t\n\f\r />])", re.ASCII | re.IGNORECASE)


class Tag(NamedTuple):
    """One tag or comment: ``html[start:end]``. What lies between two of them is text.

    ``name`` is in lower case and empty for comments, which include ``<!doctype>``, ``<?...>`` and ``</ ...>``; the
    content of a comment, CDATA section or attribute list is ``html[inner_start:inner_end]``. ``literal``: the text
    behind it is not markup and has no character references, up to the next tag. ``complete`` is False for a tag that
    the document ends in, which browsers drop; another client may append markup of its own to it.
    """

    kind: Literal["start", "end", "comment", "cdata"]
    name: str
    start: int
    end: int
    inner_start: int
    inner_end: int
    self_closing: bool = False
    literal: bool = False
    complete: bool = True


class Attribute(NamedTuple):
    """One attribute of a tag: ``name`` in lower case, ``value`` as written and without its quotation marks.

    ``html[start:end]`` is the attribute with the blanks before it; the value begins at ``value_start``.
    """

    name: str
    value: str
    start: int
    value_start: int
    end: int
    quoted: bool


def read_tags(html: str, start: int = 0, end: int | None = None, *, scripting: bool = False) -> Iterator[Tag]:
    """Yield each tag and comment of ``html[start:end]`` in order.

    With ``scripting`` the content of ``noscript`` is text, as in a browser that runs scripts; mail clients run none.
    """
    stop = len(html) if end is None else end
    foreign = ForeignContent()
    position = start
    while (match := _MARKUP.search(html, position, stop)) is not None:
        if match[2] is None:
            tag = _read_comment(html, match, stop, cdata=foreign.active)
            position = tag.end
            yield tag
            continue
        name = lower(match[2])
        closing, complete, self_closing = bool(match[1]), bool(match[5]), match[4].endswith("/")
        position = match.end() if complete else stop
        kind: Literal["start", "end"] = "end" if closing else "start"
        inner_end = match.end(3) if complete else stop
        if closing:
            foreign.close(name)
        raw = not closing and not foreign.open(name, html, match.span(3), self_closing=self_closing)
        raw = raw and complete and (name in RAW_TEXT or name == "plaintext" or (scripting and name == "noscript"))
        literal = raw and name not in ("title", "textarea")
        yield Tag(kind, name, match.start(), position, match.start(3), inner_end, self_closing, literal, complete)
        if raw:
            position = _end_of_text(html, name, position, stop)


def attributes(html: str, tag: Tag) -> Iterator[Attribute]:
    """Yield the attributes of ``tag`` in order, repeated ones as well, of which browsers take the first."""
    position = tag.inner_start
    while (match := _ATTRIBUTE.match(html, position, tag.inner_end)) is not None:
        value = match[2] or ""
        quoted = value[:1] in ('"', "'") and len(value) > 1 and value[-1] == value[0]
        yield Attribute(
            name=lower(match[1]),
            value=value[1:-1] if quoted else value,
            start=position,
            value_start=match.start(2) if value else match.end(),
            end=match.end(),
            quoted=quoted,
        )
        position = match.end()


def attribute_text(value: str) -> str:
    """Decode the character references of an attribute's value, where ``&copy=1`` and ``&copyright`` are none."""
    if "&" in value:
        value = _REFERENCE.sub(_decode, value)
    return value.replace("\0", "\ufffd")


def lower(name: str) -> str:
    """Lower the ASCII letters of a tag's or attribute's name, and no others."""
    if name.isascii():
        return name.lower().replace("\0", "\ufffd")
    return "".join(letter.lower() if letter.isascii() else letter for letter in name).replace("\0", "\ufffd")


def _decode(match: re.Match[str]) -> str:
    reference = match[0]
    if reference[1] == "#" or reference[1:] in html5:
        return unescape(reference)
    return reference


def _read_comment(html: str, match: re.Match[str], stop: int, *, cdata: bool) -> Tag:
    start, inner = match.span()
    if match[6]:
        if html.startswith(">", inner, stop) or html.startswith("->", inner, stop):
            end = html.index(">", inner) + 1
            return Tag("comment", "", start, end, inner, inner)
        closing = _COMMENT_END.search(html, inner, stop)
        inner_end, end = closing.span() if closing else (stop, stop)
        return Tag("comment", "", start, end, inner, inner_end)
    if match[7] and cdata:
        inner_end = html.find("]]>", inner, stop)
        end = stop if inner_end < 0 else inner_end + 3
        return Tag("cdata", "", start, end, inner, stop if inner_end < 0 else inner_end)
    inner = start + 2
    inner_end = html.find(">", inner, stop)
    if inner_end < 0:
        return Tag("comment", "", start, stop, inner, stop)
    return Tag("comment", "", start, inner_end + 1, inner, inner_end)


def _end_of_text(html: str, name: str, position: int, stop: int) -> int:
    """Return where the end tag of a raw text element begins; ``stop`` where there is none."""
    if name == "plaintext":
        return stop
    if name == "script":
        return _end_of_script(html, position, stop)
    closing = _RAW_END[name].search(html, position, stop)
    return closing.start() if closing else stop


def _end_of_script(html: str, position: int, stop: int) -> int:
    """Return where a script's end tag begins: inside ``<!--`` a second ``<script>`` hides one end tag."""
    escaped = doubly = False
    while (match := _SCRIPT.search(html, position, stop)) is not None:
        position = match.end()
        mark = match[0]
        if mark == "<!--":
            if not escaped:
                escaped = True
                position -= 2  # its dashes may be those of "-->"
        elif mark == "-->":
            escaped = doubly = False
        elif not match[1]:
            doubly = doubly or escaped
        elif doubly:
            doubly = False
        else:
            return match.start()
    return stop
