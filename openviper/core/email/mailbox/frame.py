"""The HTML part of a message as a document that can be shown in a sandboxed frame."""

import base64
import re

from openviper.core.email.message import PreparedMessage

__all__ = ["FRAME_POLICY", "framed_html"]

# No script, no remote content, no forms; links do not navigate, since the frame's sandbox allows no navigation of its
# parent. Styles are the message's own.
FRAME_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox"
)

_CID = re.compile(r"cid:([^\s\"'<>)]{1,250})", re.IGNORECASE)
_IMAGE_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}", re.IGNORECASE)


def framed_html(message: PreparedMessage) -> str:
    """The HTML part with its inline images (``cid:``) as data, so that the frame needs to fetch nothing."""
    images = {
        part.content_id or part.filename: part
        for part in message.attachments
        if part.inline and _IMAGE_TYPE.fullmatch(part.mimetype)
    }

    def embed(match: re.Match[str]) -> str:
        part = images.get(match[1])
        if part is None:
            return match[0]
        return f"data:{part.mimetype};base64,{base64.b64encode(part.content).decode('ascii')}"

    return _CID.sub(embed, message.html or "")
