"""Write a message as text that is equal in every run."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from typing import cast

__all__ = ["snapshot"]

_CONTENT_ID = re.compile(r"<((.+)\.[0-9a-f]{16}@[^@>]+)>")
_CHANGING = {"date": "<date>", "message-id": "<message-id>"}
_SHOWN_BY_PARTS = frozenset({"content-type", "content-transfer-encoding", "mime-version", "content-disposition"})


def snapshot(message: EmailMessage, message_id: str, bcc: Sequence[str]) -> str:
    """Return ``message`` decoded; ``bcc``, which no header has, is added as a line of its own."""
    lines = [f"{name}: {_CHANGING.get(name.lower(), value)}" for name, value in _headers(message)]
    if bcc:
        lines.append(f"(Bcc: {', '.join(bcc)})")
    shown = "\n".join([*lines, *_part(message, 0)]).rstrip() + "\n"
    for given, written in _content_ids(message):
        shown = shown.replace(written, given)
    return shown.replace(message_id, "<message-id>")


def _content_ids(message: EmailMessage) -> Iterator[tuple[str, str]]:
    """Yield the content ids that are made from the Message-ID, as given and as written."""
    for part in message.walk():
        match = _CONTENT_ID.fullmatch(str(part["content-id"] or ""))
        if match is not None:
            yield match[2], match[1]


def _headers(message: EmailMessage) -> Iterator[tuple[str, str]]:
    return ((name, str(value)) for name, value in message.items() if name.lower() not in _SHOWN_BY_PARTS)


def _part(part: EmailMessage, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}--- {_title(part)}"
    if part.is_multipart():
        for child in part.iter_parts():
            yield from _part(cast("EmailMessage", child), depth + 1)
    elif _is_body(part):
        yield str(part.get_content()).replace("\r\n", "\n").rstrip("\n")


def _is_body(part: EmailMessage) -> bool:
    return part.get_content_maintype() == "text" and not part.get_content_disposition()


def _title(part: EmailMessage) -> str:
    words = [part.get_content_type()]
    if part.is_multipart() or _is_body(part):
        return words[0]
    content = cast("bytes", part.get_payload(decode=True))
    words += [str(part.get_content_disposition()), repr(part.get_filename())]
    if part["content-id"]:
        words.append(f"Content-ID {part['content-id']}")
    return " ".join([*words, f"{len(content)} bytes", f"sha256 {hashlib.sha256(content).hexdigest()[:16]}"])
