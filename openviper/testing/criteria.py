"""What a test asks of a message, and which of it is met."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any, TypedDict

from openviper.core.email import AttachmentData, parse_address
from openviper.testing.message import SentMessage
from openviper.text import shown

__all__ = ["Criteria", "Criterion", "Verdict", "addresses_fit", "check", "describe_criterion", "refuse_unknown"]

Criterion = str | re.Pattern[str] | Callable[[Any], object]
"""A text that must be equal (or contained, where the name says so), a pattern that is searched for, or a function."""


class Criteria(TypedDict, total=False):
    """What may be asked of a message; all that is given must be met.

    ``to``, ``cc``, ``bcc``, ``recipients`` (those of the envelope): an address with or without its name, or a list that
    names all of them in any order. ``attachment``: its file name; a function gets the ``AttachmentData``. ``headers``:
    a criterion for each name. ``text_contains`` and ``html_contains`` take a list of texts, too.
    """

    to: Criterion | Sequence[str]
    cc: Criterion | Sequence[str]
    bcc: Criterion | Sequence[str]
    recipients: Criterion | Sequence[str]
    sender: Criterion
    subject: Criterion
    text_contains: Criterion | Sequence[str]
    html_contains: Criterion | Sequence[str]
    attachment: Criterion
    headers: Mapping[str, Criterion]
    mode: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One criterion of one message: what was ``wanted``, what is there instead."""

    name: str
    wanted: Any
    met: bool
    found: Any


def refuse_unknown(criteria: Criteria) -> None:
    """Refuse a misspelt criterion also where there is no message to try it on.

    Raises:
        TypeError: there is no such criterion.
    """
    known = Criteria.__annotations__
    for name in criteria:
        if name not in known:
            raise TypeError(f"there is no criterion {shown(name)}; there are {', '.join(known)}, and count")


def check(message: SentMessage, criteria: Criteria) -> list[Verdict]:
    """A verdict for each criterion, in the order given."""
    return [verdict for name, wanted in criteria.items() for verdict in _verdicts(message, name, wanted)]


def _verdicts(message: SentMessage, name: str, wanted: Any) -> Iterable[Verdict]:
    if name in ("to", "cc", "bcc", "recipients"):
        found = getattr(message, name)
        return [Verdict(name, wanted, addresses_fit(wanted, found), list(found))]
    if name == "sender":
        return [Verdict(name, wanted, addresses_fit(wanted, (message.sender,)), message.sender)]
    if name == "subject":
        return [Verdict(name, wanted, _fits(wanted, message.subject), message.subject)]
    if name in ("text_contains", "html_contains"):
        return _body_verdicts(message, name, wanted)
    if name == "attachment":
        names = [attachment.filename for attachment in message.attachments]
        return [Verdict(name, wanted, any(_attached(wanted, one) for one in message.attachments), names)]
    if name == "headers":
        return [_header_verdict(message, header, value) for header, value in wanted.items()]
    return [Verdict(name, wanted, message.mode == wanted, str(message.mode))]


def addresses_fit(wanted: Criterion | Sequence[str], found: Sequence[str]) -> bool:
    """Whether one of ``found`` is the wanted one, or, for a list, whether they are the wanted ones."""
    if isinstance(wanted, str | re.Pattern) or callable(wanted):
        return any(_address_fits(wanted, address) for address in found)
    return len(wanted) == len(found) and all(any(_address_fits(one, address) for address in found) for one in wanted)


def _address_fits(wanted: Criterion, found: str) -> bool:
    if not isinstance(wanted, str):
        return _fits(wanted, found)
    if wanted == found:
        return True
    want, have = parse_address(wanted, field="criterion"), parse_address(found, field="message")
    return want.key == have.key and want.display_name in ("", have.display_name)


def _body_verdicts(message: SentMessage, name: str, wanted: Any) -> Iterable[Verdict]:
    body = message.text if name == "text_contains" else message.html
    every = wanted if isinstance(wanted, list | tuple) else (wanted,)
    for one in every:
        yield Verdict(name, one, body is not None and _contains(one, body, html=name == "html_contains"), body)


def _contains(wanted: Criterion, body: str, *, html: bool) -> bool:
    if isinstance(wanted, str):
        return wanted in body or (html and wanted in unescape(body))
    return _fits(wanted, body)


def _attached(wanted: Criterion, attachment: AttachmentData) -> bool:
    if isinstance(wanted, str | re.Pattern):
        return _fits(wanted, attachment.filename)
    return bool(wanted(attachment))


def _header_verdict(message: SentMessage, name: str, wanted: Criterion) -> Verdict:
    found = message.parsed.get(name)
    value = None if found is None else str(found)
    return Verdict(f"header {name}", wanted, value is not None and _fits(wanted, value), value)


def _fits(wanted: Criterion, found: str) -> bool:
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
