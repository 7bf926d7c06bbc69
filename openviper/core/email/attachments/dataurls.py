"""Decode ``data:`` URLs (RFC 2397)."""

import re
from urllib.parse import unquote, unquote_to_bytes

from openviper.core.email.attachments.bytelimit import ByteLimit
from openviper.core.email.attachments.decoding import decode_base64
from openviper.core.email.errors import AttachmentRefused

__all__ = ["decode_data_url"]

_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}", re.ASCII)
_PARAMETER = re.compile(r"[\w!#$&^.+-]{1,127}=[\w!#$&^.+-]{1,127}", re.ASCII)
_LONGEST_HEAD = 1000


def decode_data_url(url: str, limit: ByteLimit) -> tuple[bytes, str]:
    """Return the content and the media type; without one it is plain text in US-ASCII.

    A type without parameters may also be left out before them: ``data:;charset=utf-8,...``. What is no parameter
    (``;utf8``) is ignored.

    Raises:
        AttachmentRefused: not such a URL, or too large. The text shows nothing of it.
    """
    comma = url.find(",", 0, _LONGEST_HEAD)
    if comma < 0:
        raise AttachmentRefused(limit.filename, "the data: URL has no comma before its content")
    head = url[len("data:") : comma]
    mimetype, *parameters = [part.strip() for part in head.split(";")]
    is_base64 = bool(parameters) and parameters[-1].lower() == "base64"
    if not head or not mimetype:
        mimetype = "text/plain"
        parameters = parameters if any("=" in each for each in parameters) else ["charset=US-ASCII"]
    mimetype = unquote(mimetype)
    if not _TYPE.fullmatch(mimetype) or mimetype.lower().startswith("multipart/"):
        raise AttachmentRefused(limit.filename, "the data: URL has a media type that a file cannot have")
    kept = [each for each in map(unquote, parameters) if _PARAMETER.fullmatch(each)]
    data = url[comma + 1 :]
    if is_base64:
        content = decode_base64(unquote(data) if "%" in data else data, limit, field="data: URL")
    else:
        content = unquote_to_bytes(data)
        limit.spend(len(content))
    return content, "; ".join([mimetype, *kept])
