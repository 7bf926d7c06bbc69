"""The attachment value."""

from dataclasses import dataclass

__all__ = ["AttachmentData"]


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
