"""Validate header values and attachments; errors name the offending field.

Nothing is repaired: a value is sent as given, or refused.
"""

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

from openviper.core.email.addresses import Address, parse_address
from openviper.core.email.attachments import AttachmentData, FileContent, ReadOnlyAttachment
from openviper.core.email.errors import AttachmentRefused, InvalidMessage
from openviper.core.email.message.header_lines import MAX_WORD, can_fold
from openviper.core.email.message.misplaced import type_hint
from openviper.text import control_character, shown

__all__ = [
    "HeaderSyntax",
    "checked_attachment",
    "checked_headers",
    "checked_message_ids",
    "checked_text",
    "header_syntax",
    "is_content_id",
    "is_message_id",
    "split_addresses",
    "split_list_id",
]

_MAX_HEADER = 32_000
_MAX_NAME = 50
_MAX_FILE_NAME = 1000
_MAX_MIME_TYPE = 255
_MAX_CONTENT_ID = 200
_MAX_MESSAGE_ID = 250

_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$%&'*+.^_`|~-]*")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+"
# A little wider than RFC 5322's dot-atoms: other systems put dots in odd places, and a reply must name their ids.
_MESSAGE_ID = re.compile(rf"<{_ATOM}@(?:{_ATOM}|\[[A-Za-z0-9:.]+\])>")
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$&'*+/=?^_`{|}~.@-]+")
_MIME_WORD = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_MIME_TYPE = re.compile(rf'{_MIME_WORD}/{_MIME_WORD}(?: *; *{_MIME_WORD}=(?:{_MIME_WORD}|"[ !#-:<-\[\]-~]*"))*')
_COMMA_OR_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"?+|,')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"')
_LIST_ID = re.compile(rf"([^<>]*)(<(?=[^>]{{1,255}}>){_ATOM}>)")
_ENCODED_WORD = re.compile(r"=\?[^? ]*\?[^? ]*\?[^? ]*\?=")

# Header name in lower case to the remedy.
_RESERVED = {
    "from": "use the argument sender",
    "to": "use the argument recipients",
    "cc": "use the argument cc",
    "bcc": "use the argument bcc",
    "reply-to": "use the argument reply_to",
    "subject": "use the argument subject",
    "return-path": "use the argument envelope_sender",
    "date": "use the argument date",
    "mime-version": "it is made with the message",
    "received": "mail servers add it",
    "delivered-to": "mail servers add it",
}
_RESERVED_FAMILIES = {
    "content-": "it is made from the bodies and attachments",
    "resent-": "resending is not supported",
}


class HeaderSyntax(enum.Enum):
    """Syntax of a header that programs read; encoded words belong in phrases only (RFC 2047 section 5)."""

    AS_GIVEN = "as given"  # ASCII that travels as it is: URLs, keywords, tag lists, comments
    ADDRESSES = "addresses"  # mailboxes with their names, separated by commas
    LIST_ID = "list id"  # [phrase] "<" id ">"


# By the document that defines each. Ids and comments of other systems travel as given, since a reply must repeat them.
_STRUCTURED = {
    "authentication-results": HeaderSyntax.AS_GIVEN,  # RFC 8601 section 2.2
    "auto-submitted": HeaderSyntax.AS_GIVEN,  # RFC 3834 section 5: a keyword and parameters
    "autocrypt": HeaderSyntax.AS_GIVEN,  # attributes
    "disposition-notification-to": HeaderSyntax.ADDRESSES,  # RFC 8098 section 2.1
    "dkim-signature": HeaderSyntax.AS_GIVEN,  # RFC 6376 section 3.2: tags
    "errors-to": HeaderSyntax.ADDRESSES,  # RFC 2076 section 3.5
    "expires": HeaderSyntax.AS_GIVEN,  # RFC 4021 section 2.1.50: a date
    "feedback-id": HeaderSyntax.AS_GIVEN,  # fields between colons
    "importance": HeaderSyntax.AS_GIVEN,  # RFC 4021 section 2.1.45: a keyword
    "in-reply-to": HeaderSyntax.AS_GIVEN,  # RFC 5322 section 3.6.4: msg-ids; phrases there are obsolete
    "list-id": HeaderSyntax.LIST_ID,  # RFC 2919 section 3
    "mail-followup-to": HeaderSyntax.ADDRESSES,  # draft-ietf-drums-mail-followup-to
    "message-id": HeaderSyntax.AS_GIVEN,  # RFC 5322 section 3.6.4: one msg-id
    "precedence": HeaderSyntax.AS_GIVEN,  # RFC 2076 section 3.9: a keyword
    "priority": HeaderSyntax.AS_GIVEN,  # RFC 4021 section 2.1.44: a keyword
    "references": HeaderSyntax.AS_GIVEN,  # RFC 5322 section 3.6.4: msg-ids
    "return-receipt-to": HeaderSyntax.ADDRESSES,  # RFC 2076 section 3.14
    "sensitivity": HeaderSyntax.AS_GIVEN,  # RFC 4021 section 2.1.46: a keyword
    "x-priority": HeaderSyntax.AS_GIVEN,  # a number
}
# RFC 2369: URLs and comments; RFC 8058; RFC 8617: tags. The table comes first.
_STRUCTURED_FAMILIES = ("list-", "arc-")
_OF_MESSAGE_IDS = frozenset({"in-reply-to", "references"})
# Each server or signer on the way adds one of its own (RFC 8601, RFC 6376, RFC 8617).
_REPEATED = ("authentication-results", "dkim-signature", "arc-")


def checked_text(value: Any, *, field: str) -> str:
    """Return ``value`` if it is valid header text.

    Raises:
        InvalidMessage: not a str, too long, or with a control character or line separator in it.
    """
    if not isinstance(value, str):
        raise InvalidMessage(f"{field}: must be a str, not {type(value).__name__}{type_hint(field, value)}")
    if len(value) > _MAX_HEADER:
        raise InvalidMessage(f"{field}: is longer than {_MAX_HEADER} characters")
    character = control_character(value)
    if character is not None:
        raise InvalidMessage(f"{field}: contains {character}, which no header may contain; remove it")
    return value


def checked_headers(headers: Mapping[str, str | Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Return the application's own headers as pairs, in their order.

    The items of a list are joined where the header's syntax has a separator, refused where it may stand only once, and
    otherwise a line each.

    Raises:
        InvalidMessage: a name or value cannot be sent as given, or a name is set by another argument.
    """
    if not isinstance(headers, Mapping):
        raise InvalidMessage(f"headers: must be a mapping of names to values, not {type(headers).__name__}")
    checked: dict[str, list[tuple[str, str]]] = {}
    for name, value in headers.items():
        lower = _checked_name(name)
        if lower in checked:
            raise InvalidMessage(f"headers[{shown(name)}]: given twice, in different spellings")
        field = f"headers[{shown(name)}]"
        values: Sequence[Any] = (value,)
        if isinstance(value, list | tuple):
            values = _joined_list(lower, value, field=field)
        for each in values:
            _check_value(lower, each, field=field)
        checked[lower] = [(name, each) for each in values]
    return tuple([pair for pairs in checked.values() for pair in pairs])


def _joined_list(lower: str, values: Sequence[Any], *, field: str) -> Sequence[Any]:
    """Return the values of a header given as a list: one joined value, or a value for each line."""
    if not values:
        raise InvalidMessage(f"{field}: is an empty list; leave the header out")
    if len(values) == 1:
        return values
    syntax = header_syntax(lower)
    if lower in _OF_MESSAGE_IDS:
        separator = " "
    elif syntax is HeaderSyntax.ADDRESSES or (lower.startswith("list-") and syntax is HeaderSyntax.AS_GIVEN):
        separator = ", "
    elif lower != "sender" and (syntax is None or lower.startswith(_REPEATED)):
        return values
    else:
        raise InvalidMessage(f"{field}: may occur only once, and a list of {len(values)} values is given; give one str")
    for each in values:
        _check_value(lower, each, field=field)
    return [separator.join(values)]


def checked_message_ids(value: Any, *, field: str) -> str:
    """Return message ids, given as text or as a list, as the value of a header (RFC 5322 section 3.6.4).

    Raises:
        InvalidMessage: there is none, or one is no message id in angle brackets.
    """
    if isinstance(value, str):
        given: list[Any] = [each for each in checked_text(value, field=field).split(" ") if each]
    else:
        given = [*value] if isinstance(value, list | tuple) else [value]
    wrong = next((each for each in given if not isinstance(each, str) or not is_message_id(each)), None)
    if wrong is not None or not given:
        shown_value = shown(value if wrong is None else wrong)
        raise InvalidMessage(
            f"{field}: {shown_value} is not a message id; give <unique@example.com>, or a list of them"
        )
    return str(checked_text(" ".join(given), field=field))


def header_syntax(name: str) -> HeaderSyntax | None:
    """Return the syntax of the header ``name`` (in lower case); None for free text."""
    syntax = _STRUCTURED.get(name)
    return HeaderSyntax.AS_GIVEN if syntax is None and name.startswith(_STRUCTURED_FAMILIES) else syntax


def split_addresses(value: str, *, field: str) -> tuple[Address, ...]:
    """Return the addresses of a header's value, which commas outside of quotes separate.

    Raises:
        InvalidAddress: one of them is not an address; the text begins with ``field``.
    """
    items: list[str] = []
    start = 0
    for match in _COMMA_OR_QUOTED.finditer(value):
        if match[0] == ",":
            items.append(value[start : match.start()])
            start = match.end()
    return tuple([parse_address(item, field=field) for item in (*items, value[start:])])


def split_list_id(value: str) -> tuple[str, str] | None:
    """Return the name and the id, in its angle brackets, of a List-Id (RFC 2919); None if it is not of that form."""
    match = _LIST_ID.fullmatch(value)
    if match is None:
        return None
    name = match[1].strip(" ")
    if name[:1] == '"':
        if _QUOTED.fullmatch(name) is None:
            return None
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return name, match[2]


def is_message_id(value: str) -> bool:
    """True for a msg-id with its angle brackets (RFC 5322 section 3.6.4)."""
    return len(value) <= _MAX_MESSAGE_ID and _MESSAGE_ID.fullmatch(value) is not None


def checked_attachment(attachment: AttachmentData) -> AttachmentData:
    """Return a read-only copy of the attachment as sent; an inline one has a content id, by default its file name.

    Raises:
        AttachmentRefused: a value of it cannot be sent as given.
    """
    if not isinstance(attachment, AttachmentData):
        raise InvalidMessage(f"attachments: must contain AttachmentData, not {type(attachment).__name__}")
    name: Any = attachment.filename
    if not isinstance(name, str) or not name:
        raise AttachmentRefused(str(name), "filename: must be a str that is not empty")
    character = control_character(name)
    if character is not None:
        raise AttachmentRefused(
            name[:_MAX_FILE_NAME], f"filename: contains {character}, which no header may contain; remove it"
        )
    if len(name) > _MAX_FILE_NAME:
        raise AttachmentRefused(f"{name[:80]}...", f"filename: is longer than {_MAX_FILE_NAME} characters")
    if not isinstance(attachment.stored, bytes | FileContent):
        raise AttachmentRefused(name, f"content: must be bytes, not {type(attachment.stored).__name__}")
    _check_mime_type(attachment)
    content_id = attachment.content_id
    if content_id is None and not attachment.inline:
        return _read_only(attachment, None)
    identifier: Any = name if content_id is None else content_id
    if not isinstance(identifier, str) or not is_content_id(identifier):
        hint = "give a content_id: the file name cannot be one" if content_id is None else "without '<' and '>'"
        raise AttachmentRefused(
            name, f"content_id: must be letters, digits and some of !#$&'*+/=?^_`{{|}}~.@- ({hint})"
        )
    return _read_only(attachment, identifier)


def is_content_id(value: str) -> bool:
    """True for a text that may be given as a content id."""
    return (
        len(value) <= _MAX_CONTENT_ID
        and _CONTENT_ID.fullmatch(value) is not None
        and _ENCODED_WORD.search(value) is None
    )


def _read_only(attachment: AttachmentData, content_id: str | None) -> ReadOnlyAttachment:
    return ReadOnlyAttachment(
        attachment.filename, attachment.stored, attachment.mimetype, attachment.inline, content_id
    )


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or len(name) > _MAX_NAME or not _HEADER_NAME.fullmatch(name):
        raise InvalidMessage(
            f"headers[{shown(name)}]: a name must be at most {_MAX_NAME} letters, digits and hyphens, without ':'"
        )
    lower = name.lower()
    instead = _RESERVED.get(lower)
    for family, reason in _RESERVED_FAMILIES.items():
        if lower.startswith(family):
            instead = reason
    if instead is not None:
        raise InvalidMessage(f"headers[{shown(name)}]: cannot be set here; {instead}")
    return lower


def _check_value(lower: str, value: Any, *, field: str) -> None:
    checked_text(value, field=field)
    if lower == "sender":
        parse_address(value, field=field)
        return
    syntax = header_syntax(lower)
    if syntax is HeaderSyntax.AS_GIVEN:
        _check_as_given(lower, value, field=field)
    elif syntax is HeaderSyntax.ADDRESSES:
        split_addresses(value, field=field)
    elif syntax is HeaderSyntax.LIST_ID:
        if _ENCODED_WORD.search(value):
            raise InvalidMessage(f"{field}: contains an encoded word; give plain text, which is encoded when sent")
        if split_list_id(value) is None:
            raise InvalidMessage(f"{field}: must be <news.example.com> or Name <news.example.com> (RFC 2919)")


def _check_as_given(lower: str, value: str, *, field: str) -> None:
    if not value.isascii():
        raise InvalidMessage(f"{field}: may contain only ASCII; percent-encode a URL, leave out names")
    if not value or value[0] == " " or value[-1] == " ":
        raise InvalidMessage(f"{field}: is empty, or begins or ends with a space")
    if _ENCODED_WORD.search(value):
        raise InvalidMessage(f"{field}: contains an encoded word, which is not allowed in this header")
    if not can_fold(value):
        raise InvalidMessage(f"{field}: has more than {MAX_WORD} characters without a place to fold the line")
    if lower == "message-id" and not is_message_id(value):
        raise InvalidMessage(f"{field}: must be a message id such as <unique@example.com>")


def _check_mime_type(attachment: AttachmentData) -> None:
    mimetype: Any = attachment.mimetype
    if not isinstance(mimetype, str) or len(mimetype) > _MAX_MIME_TYPE or not _MIME_TYPE.fullmatch(mimetype):
        raise AttachmentRefused(attachment.filename, "mimetype: must be type/subtype, such as 'text/plain'")
    if mimetype[:10].lower() == "multipart/":
        raise AttachmentRefused(
            attachment.filename, "mimetype: a multipart type has a structure of its own; use 'application/octet-stream'"
        )
    if _ENCODED_WORD.search(mimetype):
        raise AttachmentRefused(attachment.filename, "mimetype: contains an encoded word")
