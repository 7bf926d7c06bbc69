"""Attachments: the value, and loading it from files, URLs, bytes and text within limits."""

from openviper.core.email.attachments.data import AttachmentData, ReadOnlyAttachment
from openviper.core.email.attachments.loading import AttachmentInput, resolve_attachments
from openviper.core.email.attachments.mediatypes import looks_like_type

__all__ = ["AttachmentData", "AttachmentInput", "ReadOnlyAttachment", "looks_like_type", "resolve_attachments"]
