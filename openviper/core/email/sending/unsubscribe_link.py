"""Make unsubscribe links for bodies that are rendered outside a template of ours."""

from openviper.core.email.addresses import AddressLike
from openviper.core.email.delivery import current_settings
from openviper.core.email.message.unsubscribe import make_link

__all__ = ["unsubscribe_url"]


def unsubscribe_url(
    recipient: AddressLike,
    stream: str | None = None,
    *,
    recipient_id: str | int | None = None,
    mailer: str | None = None,
) -> str:
    """Return the link by which ``recipient`` opts out of ``stream``, for a body that you render yourself.

    ``unsubscribe=True`` with the same arguments puts the same link into a message's headers and template. The link does
    not expire. It is signed but not encrypted, so the address can be read in it.

    Args:
        recipient: The message's only recipient.
        stream: The stream that the link stops; None: the stream in the mailer's settings.
        recipient_id: Your identifier for the recipient; the link then contains it instead of the address.
        mailer: A name in ``EMAIL["mailers"]``; None is the default mailer.

    Raises:
        InvalidMessage: there is no stream, there is not exactly one recipient, or an argument has the wrong type.
        ImproperlyConfigured: ``unsubscribe_keys`` or ``site_url`` is not set, or other settings are wrong.
    """
    settings = current_settings().of_mailer(mailer)
    return make_link(recipient, None, None, stream, True, recipient_id, settings).url
