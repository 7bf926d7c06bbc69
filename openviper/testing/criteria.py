"""Check a message against the criteria of a test."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any, TypedDict, cast

from openviper.core.email import AddressLike, AttachmentData, parse_address
from openviper.core.email.addresses import Address, Addresses, parse_addresses, read_address
from openviper.testing.message import SentMessage
from openviper.text import shown, suggestion

__all__ = [
    "AddressCriterion",
    "Criteria",
    "Criterion",
    "Verdict",
    "check",
    "describe_criterion",
    "match_addresses",
    "refuse_unknown",
]

# As other mail libraries name what a test looks at.
_NAMES_ELSEWHERE = {
    "body": "text_contains",
    "text": "text_contains",
    "html": "html_contains",
    "from_email": "sender",
    "attachments": "attachment",
}

Criterion = str | re.Pattern[str] | Callable[[Any], object]
"""A text that must be equal (or contained, for ``..._contains``), a pattern to search for, or a predicate."""


AddressCriterion = Criterion | Address | Sequence[Criterion | AddressLike]
"""A criterion for one of several addresses, or a list with one for each."""


class Criteria(TypedDict, total=False):
    """Criteria for a message, which must meet all of those given.

    ``to``, ``cc``, ``bcc``, ``recipients`` (of the envelope): an address with or without its name, as the arguments of
    a send take it, or a list of all addresses in any order. ``attachment``: its file name; a function receives the
    ``AttachmentData``. ``headers``: a criterion for each name. ``text_contains`` and ``html_contains`` also take a list
    of texts.
    """

    to: AddressCriterion
    cc: AddressCriterion
    bcc: AddressCriterion
    recipients: AddressCriterion
    sender: Criterion | AddressLike
    subject: Criterion
    text_contains: Criterion | Sequence[str]
    html_contains: Criterion | Sequence[str]
    attachment: Criterion
    headers: Mapping[str, Criterion]
    mode: str
    mailer: Criterion
    key: Criterion


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one criterion for one message: the ``wanted`` value, the ``found`` one, and whether they match."""

    name: str
    wanted: Any
    met: bool
    found: Any


def refuse_unknown(criteria: Criteria) -> None:
    """Refuse a misspelt criterion even if there is no message to check.

    Raises:
        TypeError: a criterion does not exist.
    """
    known = Criteria.__annotations__
    for name in criteria:
        if name not in known:
            remedy = suggestion(name, known, aliases=_NAMES_ELSEWHERE, otherwise=f"use {', '.join(known)} or count")
            raise TypeError(f"there is no criterion {shown(name)}{remedy}")


def check(message: SentMessage, criteria: Criteria) -> list[Verdict]:
    """Return a verdict for each criterion, in the order given."""
    return [verdict for name, wanted in criteria.items() for verdict in _verdicts(message, name, wanted)]


def _verdicts(message: SentMessage, name: str, wanted: Any) -> Iterable[Verdict]:
    if name in ("to", "cc", "bcc", "recipients"):
        found = getattr(message, name)
        return [Verdict(name, wanted, match_addresses(wanted, found, field=name), list(found))]
    if name == "sender":
        return [Verdict(name, wanted, _match_address(wanted, message.sender, name), message.sender)]
    if name == "mailer":
        return [Verdict(name, wanted, _matches(wanted, message.mailer), message.mailer)]
    if name == "key":
        return [Verdict(name, wanted, message.key is not None and _matches(wanted, message.key), message.key)]
    if name == "subject":
        return [Verdict(name, wanted, _matches(wanted, message.subject), message.subject)]
    if name in ("text_contains", "html_contains"):
        return _body_verdicts(message, name, wanted)
    if name == "attachment":
        names = [attachment.filename for attachment in message.attachments]
        return [
            Verdict(
                name, wanted, any(_match_attachment(wanted, attachment) for attachment in message.attachments), names
            )
        ]
    if name == "headers":
        return [_header_verdict(message, header, value) for header, value in wanted.items()]
    return [Verdict(name, wanted, message.mode == wanted, str(message.mode))]


def match_addresses(wanted: AddressCriterion, found: Sequence[str], *, field: str) -> bool:
    """True if one of ``found`` matches ``wanted``, or, for a list, if both have the same addresses.

    Raises:
        InvalidAddress: a value of ``wanted`` is not an address; the text begins with ``field``.
    """
    if isinstance(wanted, str | re.Pattern | Address) or callable(wanted):
        return any(_match_address(wanted, address, field) for address in found)
    if all(isinstance(one, str | tuple | Address) for one in wanted):
        wanted = parse_addresses(cast("Addresses", wanted), field=field)
    return len(wanted) == len(found) and all(
        any(_match_address(one, address, field) for address in found) for one in wanted
    )


def _match_address(wanted: Criterion | AddressLike, found: str, field: str) -> bool:
    if not isinstance(wanted, str | tuple | Address):
        return _matches(wanted, found)
    want, have = read_address(wanted, field=field), parse_address(found, field="message")
    return want.key == have.key and want.display_name in ("", have.display_name)


def _body_verdicts(message: SentMessage, name: str, wanted: Any) -> Iterable[Verdict]:
    body = message.text if name == "text_contains" else message.html
    criteria = wanted if isinstance(wanted, list | tuple) else (wanted,)
    for criterion in criteria:
        met = body is not None and _contains(criterion, body, html=name == "html_contains")
        yield Verdict(name, criterion, met, body)


def _contains(wanted: Criterion, body: str, *, html: bool) -> bool:
    if isinstance(wanted, str):
        return wanted in body or (html and wanted in unescape(body))
    return _matches(wanted, body)


def _match_attachment(wanted: Criterion, attachment: AttachmentData) -> bool:
    if isinstance(wanted, str | re.Pattern):
        return _matches(wanted, attachment.filename)
    return bool(wanted(attachment))


def _header_verdict(message: SentMessage, name: str, wanted: Criterion) -> Verdict:
    values = [str(value) for value in message.parsed.get_all(name, [])]
    met = any(_matches(wanted, value) for value in values)
    return Verdict(f"header {name}", wanted, met, ", ".join(values) if values else None)


def _matches(wanted: Criterion, found: str) -> bool:
    if isinstance(wanted, str):
        return wanted == found
    if isinstance(wanted, re.Pattern):
        return wanted.search(found) is not None
    return bool(wanted(found))


def describe_criterion(wanted: Any) -> str:
    """Return a criterion as a failed assertion shows it."""
    if isinstance(wanted, re.Pattern):
        return f"/{wanted.pattern}/"
    if callable(wanted):
        return f"{getattr(wanted, '__name__', wanted)}(...)"
    return repr(wanted)
