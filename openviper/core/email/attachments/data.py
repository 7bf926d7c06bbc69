"""The attachment value."""

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any, Self

from openviper.core.email.attachments.temporary import FileContent
from openviper.text import shown

__all__ = ["AttachmentData", "LoadedAttachment", "ReadOnlyAttachment"]


@dataclass(slots=True)
class AttachmentData:
    """One attachment, ready to be encoded.

    With ``inline`` and a ``content_id`` it is a part that the HTML refers to as ``cid:content_id`` (RFC 2392). For an
    id without ``@``, a msg-id made from it is sent, also in the HTML.
    """

    filename: str
    content: bytes
    mimetype: str = "application/octet-stream"
    inline: bool = False
    content_id: str | None = None

    @property
    def stored(self) -> bytes | FileContent:
        """Return the content without loading it: bytes, or a temporary file (reading it blocks)."""
        kept: bytes | FileContent = _CONTENT.__get__(self, AttachmentData)
        return kept

    @property
    def size(self) -> int:
        """Return the length of the content in bytes, without reading it."""
        return len(self.stored)

    def with_content_id(self, content_id: str | None) -> Self:
        """Return a copy with another content id, without copying the content."""
        return type(self)(self.filename, self.stored, self.mimetype, self.inline, content_id)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        # Short, since a whole file has no place in a log.
        values = (self.filename, self.stored, self.mimetype, self.inline, self.content_id)
        shown_fields = ", ".join(f"{name}={shown(value)}" for name, value in zip(_FIELDS, values, strict=True))
        return f"{type(self).__name__}({shown_fields})"


# The slot itself, which subclasses hide behind a property.
_CONTENT: Any = AttachmentData.__dict__["content"]
_FIELDS = tuple(field.name for field in fields(AttachmentData))


class _Content:
    """The attribute ``content`` of an attachment whose slot may hold a file: the bytes, read anew each time."""

    def __get__(self, attachment: AttachmentData, owner: type | None = None) -> bytes:
        kept = _CONTENT.__get__(attachment, owner)
        return kept.read() if isinstance(kept, FileContent) else kept

    def __set__(self, attachment: AttachmentData, content: bytes | FileContent) -> None:
        _CONTENT.__set__(attachment, content)


class LoadedAttachment(AttachmentData):
    """An attachment whose content may be in a temporary file. Reading ``content`` then reads all of it, and blocks."""

    __slots__ = ()

    content = _Content()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttachmentData):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in _FIELDS)


class ReadOnlyAttachment(LoadedAttachment):
    """An attachment of a prepared message, which listeners may look at and not change."""

    __slots__ = ()

    def __init__(
        self,
        filename: str,
        content: bytes | FileContent,
        mimetype: str = "application/octet-stream",
        inline: bool = False,
        content_id: str | None = None,
    ) -> None:
        for name, value in zip(_FIELDS, (filename, content, mimetype, inline, content_id), strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"the message is prepared: cannot assign to field {shown(name)}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"the message is prepared: cannot delete field {shown(name)}")
