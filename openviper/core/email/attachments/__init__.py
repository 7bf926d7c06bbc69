"""Attachments: the value, and loading it from files, URLs, bytes and text within limits."""

from openviper.core.email.attachments.data import AttachmentData
from openviper.core.email.attachments.loading import AttachmentInput, resolve_attachments

__all__ = ["AttachmentData", "AttachmentInput", "resolve_attachments"]
