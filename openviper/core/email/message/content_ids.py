"""Write content ids as msg-ids, and the ``cid:`` URLs of the HTML to match (RFC 2045 section 7, RFC 2392)."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from urllib.parse import quote, unquote

from openviper.core.email.message.model import PreparedMessage
from openviper.markup import attribute_text, attributes, read_tags

__all__ = ["with_msg_ids"]

_READABLE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_LONGEST_READABLE = 60
_CID = re.compile(r"(?<![\w.+-])cid:([^\s\"'<>()\\]+)", re.ASCII | re.IGNORECASE)
_URLS = frozenset({"src", "srcset", "href", "xlink:href", "background", "poster", "data", "style"})


def with_msg_ids(message: PreparedMessage) -> PreparedMessage:
    """Return ``message`` with each content id as a msg-id, in its attachments and in the HTML.

    An id without ``@`` gets one that is derived from the Message-ID: unique in the world, the same in every attempt.
    """
    given = {part.content_id for part in message.attachments if part.content_id and "@" not in part.content_id}
    if not given:
        return message
    written = {content_id: _msg_id(content_id, message) for content_id in given}
    attachments = [
        replace(part, content_id=written.get(part.content_id, part.content_id)) if part.content_id else part
        for part in message.attachments
    ]
    html = None if message.html is None else _rewritten(message.html, written)
    return message._replace(html=html, attachments=tuple(attachments))


def _rewritten(html: str, written: Mapping[str, str]) -> str:
    """Return ``html`` in which ``cid:`` URLs of exactly a given id have the written one.

    They are looked for in attributes that hold URLs and in CSS, inside of comments as well, which Outlook reads. Text
    that merely has such words stays.
    """

    def rewrite(match: re.Match[str]) -> str:
        token = match[1].rstrip(",")  # of a srcset
        content_id = written.get(unquote(attribute_text(token)))
        return match[0] if content_id is None else f"cid:{quote(content_id, safe='@')}{match[1][len(token) :]}"

    pieces: list[str] = []
    position = 0
    for start, end in _places(html, 0, len(html)):
        pieces += [html[position:start], _CID.sub(rewrite, html[start:end])]
        position = end
    return "".join([*pieces, html[position:]])


def _msg_id(content_id: str, message: PreparedMessage) -> str:
    readable = len(content_id) <= _LONGEST_READABLE and _READABLE.fullmatch(content_id)
    unique = hashlib.blake2s(f"{content_id} {message.message_id}".encode(), digest_size=8).hexdigest()
    return f"{content_id if readable else 'part'}.{unique}@{message.sender.domain}"


def _places(html: str, start: int, end: int, *, in_comment: bool = False) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``html[start:end]`` that may hold URLs, in order."""
    sheet: int | None = None
    for tag in read_tags(html, start, end):
        if sheet is not None:
            yield sheet, tag.start
            sheet = None
        if tag.kind == "comment" and not in_comment:
            yield from _places(html, tag.inner_start, tag.inner_end, in_comment=True)
        elif tag.kind == "start":
            for attribute in attributes(html, tag):
                if attribute.name in _URLS:
                    yield attribute.value_start, attribute.end
            if tag.name == "style":
                sheet = tag.end
    if sheet is not None:
        yield sheet, end
