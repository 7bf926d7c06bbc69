"""``send_email`` and its twins: turn arguments into a message and submit it."""

from openviper.core.email.sending.bulk import BulkProgress, send_many
from openviper.core.email.sending.previews import preview
from openviper.core.email.sending.render import RenderedEmail, render_email
from openviper.core.email.sending.single import send_email, send_email_sync, submit_email
from openviper.core.email.sending.unsubscribe_link import unsubscribe_url

__all__ = [
    "BulkProgress",
    "RenderedEmail",
    "preview",
    "render_email",
    "send_email",
    "send_email_sync",
    "send_many",
    "submit_email",
    "unsubscribe_url",
]
