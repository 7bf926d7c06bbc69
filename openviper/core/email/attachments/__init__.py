"""Attachments: the value, and loading it from anywhere within limits."""

from openviper.core.email.attachments.data import AttachmentData, ReadOnlyAttachment
from openviper.core.email.attachments.loading import AttachmentInput, list_attachments, resolve_attachments
from openviper.core.email.attachments.mediatypes import looks_like_type
from openviper.core.email.attachments.temporary import FileContent

__all__ = [
    "AttachmentData",
    "AttachmentInput",
    "FileContent",
    "ReadOnlyAttachment",
    "list_attachments",
    "looks_like_type",
    "resolve_attachments",
]
