"""Show HTML as text: escaped, with its tags, attributes and comments marked, line by line."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from markupsafe import Markup

from openviper.markup import attributes, read_tags

__all__ = ["Token", "read_tokens", "source_lines"]

_SHOWN = 300_000  # characters; the download has the rest


class Token(NamedTuple):
    """A piece of HTML as it is written; ``kind`` is empty for text between tags."""

    kind: Literal["", "tag", "attribute", "value", "comment"]
    text: str


def source_lines(html: str) -> tuple[list[Markup], bool]:
    """Return the lines of ``html``, each escaped and with its tokens in spans; and True if these are all.

    The time is proportional to the length: use a thread.
    """
    complete = len(html) <= _SHOWN
    html = html[:_SHOWN].replace("\r\n", "\n")
    lines: list[list[str]] = [[]]
    for kind, text in read_tokens(html):
        for index, piece in enumerate(text.split("\n")):
            if index:
                lines.append([])
            if piece:
                escaped = Markup.escape(piece)
                lines[-1].append(f'<span class="{kind}">{escaped}</span>' if kind else str(escaped))
    return [Markup("".join(line)) for line in lines], complete  # noqa: S704 - each piece is escaped


def read_tokens(html: str) -> Iterator[Token]:
    """Yield the pieces of ``html`` in order; joined they are ``html`` again."""
    position = 0
    for tag in read_tags(html):
        if tag.start > position:
            yield Token("", html[position : tag.start])
        position = tag.start
        if tag.kind in ("start", "end"):
            yield Token("tag", html[position : tag.inner_start])
            position = tag.inner_start
            for attribute in attributes(html, tag):
                yield Token("attribute", html[attribute.start : attribute.value_start])
                yield Token("value", html[attribute.value_start : attribute.end])
                position = attribute.end
            yield Token("tag", html[position : tag.end])
        else:
            yield Token("comment", html[position : tag.end])
        position = tag.end
    if position < len(html):
        yield Token("", html[position:])
