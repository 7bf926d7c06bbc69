"""Make and read one-click unsubscribe links (RFC 8058): a signed token names the recipient and the stream."""

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from openviper.core.email.addresses import Address, Addresses, parse_addresses
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.labels import checked_stream
from openviper.core.email.message.model import EmailMessageData
from openviper.exceptions import ImproperlyConfigured
from openviper.text import control_character, shown

__all__ = [
    "UNSUBSCRIBE_PATH",
    "UnsubscribeLink",
    "UnsubscribeRequest",
    "UnsubscribeSettings",
    "add_unsubscribe",
    "disarm_links",
    "make_link",
    "make_token",
    "read_token",
]

UNSUBSCRIBE_PATH = "/unsubscribe"
"""Path of the endpoint below ``EMAIL["site_url"]``; the token follows it."""

_HEADER, _POST_HEADER = "List-Unsubscribe", "List-Unsubscribe-Post"
_CONTEXT_NAME = "unsubscribe_url"
_LONGEST_ID = 200  # characters
_LONGEST_URL = 890  # characters: a word of a header has at most 900, and the brackets count
_BY_ID, _BY_ADDRESS = b"i", b"a"
# Key id (32 bits), payload and MAC (128 bits), each in base64url.
_TOKEN = re.compile(r"([A-Za-z0-9_-]{6})\.([A-Za-z0-9_-]{4,1200})\.([A-Za-z0-9_-]{22})")
_IN_TEXT = re.compile(rf"({re.escape(UNSUBSCRIBE_PATH)}/){_TOKEN.pattern}(?![A-Za-z0-9_-])")


class _Secret(Protocol):
    def get_secret_value(self) -> str: ...


class UnsubscribeSettings(Protocol):
    """The settings of a mailer that links are made from; see ``EmailSettings``."""

    @property
    def stream(self) -> str | None: ...
    @property
    def site_url(self) -> str | None: ...
    @property
    def unsubscribe_keys(self) -> Sequence[_Secret]: ...


class UnsubscribeRequest(NamedTuple):
    """A reader's request to stop the mail of ``stream``; ``address`` or ``recipient_id`` identifies the reader.

    The other one is None. ``recipient_id`` is the argument of the send, as text.
    """

    stream: str
    address: str | None = None
    recipient_id: str | None = None


class UnsubscribeLink(NamedTuple):
    """The link of one message, with the parsed addresses and the stream that it was made from."""

    url: str
    recipients: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    stream: str

    def add_headers(self, given: Any) -> Any:
        """Return the application's headers with both of the link (RFC 8058 section 3.1).

        Raises:
            InvalidMessage: the application gives one of them.
        """
        if not isinstance(given, Mapping | None):
            return given  # which the check of the headers refuses
        headers = {} if given is None else dict(given)
        for name in headers:
            if isinstance(name, str) and name.lower() in (_HEADER.lower(), _POST_HEADER.lower()):
                raise InvalidMessage(f"headers[{shown(name)}]: is set by unsubscribe=True already; give it once")
        return {**headers, _HEADER: f"<{self.url}>", _POST_HEADER: "List-Unsubscribe=One-Click"}

    def add_to_context(self, given: Any) -> Any:
        """Return the template's values with ``unsubscribe_url``.

        Raises:
            InvalidMessage: there is a value of that name.
        """
        if not isinstance(given, Mapping | None):
            return given  # which is refused before the template is rendered
        if given is not None and _CONTEXT_NAME in given:
            raise InvalidMessage(f"context: {_CONTEXT_NAME} is set by unsubscribe=True; leave it out")
        return {**(given or {}), _CONTEXT_NAME: self.url}


def make_link(
    recipients: Addresses,
    cc: Addresses | None,
    bcc: Addresses | None,
    stream: str | None,
    unsubscribe: object,
    recipient_id: object,
    settings: UnsubscribeSettings,
) -> UnsubscribeLink:
    """Return the link by which the message's one recipient opts out of its stream.

    Raises:
        InvalidMessage: there is no stream, there is not exactly one recipient, or an argument has the wrong type.
        ImproperlyConfigured: ``unsubscribe_keys`` or ``site_url`` is not set.
    """
    if not isinstance(unsubscribe, bool):
        raise InvalidMessage(f"unsubscribe: must be True or False, not {shown(unsubscribe)}")
    if not unsubscribe:
        raise InvalidMessage("recipient_id: names the recipient in the link of unsubscribe=True; give both, or neither")
    to = parse_addresses(recipients, field="recipients")
    copies, blind = parse_addresses(cc, field="cc"), parse_addresses(bcc, field="bcc")
    everyone = (*to, *copies, *blind)
    count = len({address.key for address in everyone})
    if count != 1:
        raise InvalidMessage(
            f"unsubscribe: the link belongs to one recipient, and the message has {count}; use send_many() with one "
            "message for each recipient"
        )
    stream = settings.stream if stream is None else stream
    if stream is None:
        raise InvalidMessage(
            'unsubscribe: give the stream that the link stops, such as stream="news", so that other mail is still sent'
        )
    request = UnsubscribeRequest(checked_stream(stream), *_recipient(recipient_id, everyone[0].addr_spec))
    site_url, keys = _checked_settings(settings)
    url = f"{site_url}{UNSUBSCRIBE_PATH}/{make_token(request, keys[0].get_secret_value())}"
    if len(url) > _LONGEST_URL:
        raise InvalidMessage(
            f"unsubscribe: the link has {len(url)} characters, and a header takes {_LONGEST_URL}; give a shorter "
            "recipient_id"
        )
    return UnsubscribeLink(url, to, copies, blind, stream)


def add_unsubscribe(data: EmailMessageData, settings: UnsubscribeSettings) -> EmailMessageData:
    """Return ``data`` with the headers that its ``unsubscribe`` asks for, and its addresses parsed.

    Raises:
        InvalidMessage: as of :func:`make_link`, or ``data.headers`` has one of them.
        ImproperlyConfigured: as of :func:`make_link`.
    """
    link = make_link(data.recipients, data.cc, data.bcc, data.stream, data.unsubscribe, data.recipient_id, settings)
    return replace(
        data,
        recipients=link.recipients,
        cc=link.cc,
        bcc=link.bcc,
        stream=link.stream,
        headers=link.add_headers(data.headers),
    )


def make_token(request: UnsubscribeRequest, key: str) -> str:
    """Return the token that names ``request``, signed by ``key``. Its content is encoded, and not encrypted."""
    kind, recipient = (_BY_ID, request.recipient_id) if request.address is None else (_BY_ADDRESS, request.address)
    assert recipient is not None, "one of the two is given"
    payload = _encode(b"%b%b\0%b" % (kind, request.stream.encode(), recipient.encode()))
    return f"{_key_id(key)}.{payload}.{_mac(key, payload)}"


def read_token(token: str, keys: Sequence[str]) -> UnsubscribeRequest | None:
    """Return what ``token`` names if one of ``keys`` has signed it; None for any other text."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    key_id, payload, mac = match.groups()
    for key in keys:
        if key_id == _key_id(key) and hmac.compare_digest(mac, _mac(key, payload)):
            return _read_payload(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return None


def disarm_links(text: str | None) -> str | None:
    """Return a body whose links unsubscribe nobody: their tokens are replaced by a word."""
    if text is None or UNSUBSCRIBE_PATH not in text:
        return text
    return _IN_TEXT.sub(r"\1redirected", text)


def _recipient(recipient_id: object, address: str) -> tuple[str | None, str | None]:
    """Return the address and the recipient id of a token; one of them is None."""
    if recipient_id is None:
        return address, None
    if isinstance(recipient_id, bool) or not isinstance(recipient_id, str | int):
        raise InvalidMessage(f"recipient_id: must be a string or an int, not {type(recipient_id).__name__}")
    text = str(recipient_id)
    if not text or len(text) > _LONGEST_ID or control_character(text):
        raise InvalidMessage(
            f"recipient_id: {shown(text)} is empty, longer than {_LONGEST_ID} characters, or has a control character"
        )
    return None, text


def _checked_settings(settings: UnsubscribeSettings) -> tuple[str, Sequence[_Secret]]:
    faults = []
    if settings.site_url is None:
        faults.append(
            'EMAIL["site_url"]: is not set; unsubscribe=True needs the base URL of its links, such as https://shop.example'
        )
    if not settings.unsubscribe_keys:
        faults.append(
            'EMAIL["unsubscribe_keys"]: is empty; unsubscribe=True signs its links: give a list with a secret of at '
            "least 32 characters, such as secrets.token_hex(32) makes once"
        )
    if faults or settings.site_url is None:
        raise ImproperlyConfigured("\n".join(faults))
    return settings.site_url, settings.unsubscribe_keys


def _read_payload(payload: bytes) -> UnsubscribeRequest:
    kind, (stream, _, recipient) = payload[:1], payload[1:].decode().partition("\0")
    return UnsubscribeRequest(stream, *((None, recipient) if kind == _BY_ID else (recipient, None)))


def _key_id(key: str) -> str:
    return _encode(hashlib.sha256(b"openviper unsubscribe key\0" + key.encode()).digest()[:4])


def _mac(key: str, payload: str) -> str:
    return _encode(hmac.digest(key.encode(), b"openviper unsubscribe token\0" + payload.encode(), "sha256")[:16])


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
