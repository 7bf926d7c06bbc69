"""Write content ids as msg-ids, and the ``cid:`` URLs of the HTML to match (RFC 2045 section 7, RFC 2392)."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, unquote

from openviper.core.email.attachments import AttachmentData, ReadOnlyAttachment
from openviper.core.email.message.model import PreparedMessage
from openviper.core.email.message.validation import is_content_id
from openviper.markup import attribute_text, attributes, read_tags

__all__ = ["inline_named", "with_msg_ids"]

_READABLE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_LONGEST_READABLE = 60
_CID = re.compile(r"(?<![\w.+-])cid:([^\s\"'<>()\\]+)", re.ASCII | re.IGNORECASE)
_URLS = frozenset({"src", "srcset", "href", "xlink:href", "background", "poster", "data", "style"})


def inline_named(html: str, attachments: Sequence[AttachmentData]) -> tuple[str, tuple[AttachmentData, ...]]:
    """Make each attachment inline that ``html`` shows by ``cid:`` and its content id or file name.

    A file name that cannot be a content id gets one, in the HTML too. Of several with one name the first is taken.
    """
    if _CID.search(html) is None:
        return html, tuple(attachments)
    named: dict[str, int] = {}
    for number, part in enumerate(attachments):
        if part.content_id is None:
            named.setdefault(part.filename, number)
    # A content id takes precedence over the same file name.
    named |= {part.content_id: number for number, part in enumerate(attachments) if part.content_id is not None}
    wanted = [name for name in _shown_ids(html) if name in named and not attachments[named[name]].inline]
    if not wanted:
        return html, tuple(attachments)
    parts = list(attachments)
    written: dict[str, str] = {}
    for name in wanted:
        number = named[name]
        part = parts[number]
        content_id = name
        if not is_content_id(name):
            content_id = f"file-{number + 1}"
            while content_id in named:
                content_id += "_"
            written[name] = content_id
        parts[number] = ReadOnlyAttachment(part.filename, part.stored, part.mimetype, True, content_id)
    return _rewritten(html, written) if written else html, tuple(parts)


def with_msg_ids(message: PreparedMessage) -> PreparedMessage:
    """Return ``message`` with each content id as a msg-id, in its attachments and in the HTML.

    An id without ``@`` gets one that is derived from the Message-ID: unique in the world, the same in every attempt.
    """
    given = {part.content_id for part in message.attachments if part.content_id and "@" not in part.content_id}
    if not given:
        return message
    written = {content_id: _msg_id(content_id, message) for content_id in given}
    attachments = [
        part.with_content_id(written.get(part.content_id, part.content_id)) if part.content_id else part
        for part in message.attachments
    ]
    html = None if message.html is None else _rewritten(message.html, written)
    return message._replace(html=html, attachments=tuple(attachments))


def _shown_ids(html: str) -> list[str]:
    """Return the ids of all ``cid:`` URLs in ``html``, each once."""
    tokens = [match[1] for start, end in _places(html, 0, len(html)) for match in _CID.finditer(html, start, end)]
    return list(dict.fromkeys(unquote(attribute_text(token.rstrip(","))) for token in tokens))


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
