"""The attachment value."""

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

from openviper.text import shown

__all__ = ["AttachmentData", "ReadOnlyAttachment"]


@dataclass(slots=True)
class AttachmentData:
    """One attachment, ready to be encoded.

    ``inline`` with a ``content_id`` makes it a part that the HTML shows by ``cid:content_id`` (RFC 2392).
    An id without ``@`` is sent as a msg-id made from it, in the HTML too.
    """

    filename: str
    content: bytes
    mimetype: str = "application/octet-stream"
    inline: bool = False
    content_id: str | None = None


class ReadOnlyAttachment(AttachmentData):
    """An attachment of a prepared message, which listeners may look at and not change."""

    __slots__ = ()

    def __init__(
        self,
        filename: str,
        content: bytes,
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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttachmentData):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in _FIELDS)


_FIELDS = tuple(field.name for field in fields(AttachmentData))
