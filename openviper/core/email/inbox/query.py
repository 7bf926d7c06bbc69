"""Parse the search syntax of the inbox: words, phrases, and operators such as ``from:ana``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from openviper.core.email.events import EventKind
from openviper.text import cut, shown, suggestion

__all__ = [
    "MOST_PARTS",
    "OPERATORS",
    "PARTLY_DELIVERED",
    "STATES",
    "ParsedQuery",
    "Term",
    "parse_moment",
    "parse_query",
    "parse_term",
]

PARTLY_DELIVERED = "partly-delivered"
STATES = (*get_args(EventKind), PARTLY_DELIVERED)

OPERATORS: Mapping[str, str] = {
    "from": "a part of the sender's name or address",
    "to": "a part of a recipient's name or address",
    "cc": "a part of a name or address in Cc",
    "bcc": "a part of a name or address in Bcc",
    "subject": "a part of the subject",
    "has": "`attachment`: messages with a file that is not an inline image",
    "is": "messages that are `unread` or `read`",
    "state": "the exact state: `delivered`, `partly-delivered`, `retrying`, `failed`, ...",
    "mailer": "the mailer's exact name",
    "template": "a part of the template's name",
    "before": "messages that arrived before this date (`2026-11-30`), time (`2026-11-30T14:00`) or cursor",
    "after": "messages that arrived on or after this date or time, or after this cursor",
}
"""What each operator matches, in Markdown."""

_CHOICES: Mapping[str, tuple[str, ...]] = {"has": ("attachment",), "is": ("unread", "read"), "state": STATES}
_MOMENTS = ("before", "after")
MOST_PARTS = 50
"""Parts of a search that are used: each searches the whole store, and the page links the search without each."""
_CURSOR_DIGITS = 19

# An optional minus, an optional operator, and a phrase in quotes (the end may lack its quote) or a word.
_TOKEN = re.compile(r'(-?)(?:([A-Za-z]+):)?(?:"([^"]*)"?|(\S+))')
_LOOKS_LIKE_OPERATOR = re.compile(r"-|[A-Za-z]+:|\"")


@dataclass(frozen=True, slots=True)
class Term:
    """One condition; ``operator`` is empty for words and phrases. ``negated``: the message must not meet it."""

    operator: str
    value: str
    negated: bool = False

    def __str__(self) -> str:
        """Return the condition as it can be typed."""
        quoted = any(map(str.isspace, self.value)) or (not self.operator and _LOOKS_LIKE_OPERATOR.match(self.value))
        # A quoted value has no quotation mark inside; a word may have one.
        value = f'"{self.value}"' if quoted and '"' not in self.value else self.value
        return f"{'-' if self.negated else ''}{self.operator}{':' if self.operator else ''}{value}"


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """The conditions of a search, and hints about parts of it that are probably mistakes."""

    terms: tuple[Term, ...] = ()
    hints: tuple[str, ...] = ()

    def without(self, index: int) -> str:
        """Return the search as typed without the condition at ``index``."""
        return " ".join(map(str, (*self.terms[:index], *self.terms[index + 1 :])))


def parse_query(text: str) -> ParsedQuery:
    """Parse ``text``; every text is a valid search.

    A message must meet all conditions. A leading ``-`` excludes; ``"..."`` is a phrase, also as an operator's value.
    An unknown operator is searched as a word; an operator with a wrong value, and parts beyond ``MOST_PARTS``, are
    left out; each gives a hint.
    """
    terms: list[Term] = []
    hints: list[str] = []
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number == MOST_PARTS:
            hints.append(f"only the first {MOST_PARTS} parts are searched; shorten the search, or quote a phrase")
            break
        minus, name, phrase, word = match.groups()
        found = _parse_token(
            name or "", word if phrase is None else phrase, negated=bool(minus), quoted=phrase is not None
        )
        for one in found:
            if isinstance(one, Term):
                terms.append(one)
            else:
                hints.append(one)
    return ParsedQuery(tuple(dict.fromkeys(terms)), tuple(dict.fromkeys(hints)))


def parse_term(operator: str, value: str, *, negated: bool = False) -> Term | str:
    """Return the condition, or why ``value`` is wrong for the known ``operator``."""
    if not value.strip():
        return f"{operator}: has no value; write it directly after the colon"
    if (known := _CHOICES.get(operator)) is not None:
        chosen = value.lower().replace(" ", "-")
        if chosen not in known:
            return f"{operator}: there is no {shown(value)} (known: {', '.join(known)}){suggestion(chosen, known)}"
        value = chosen
    if operator in _MOMENTS and parse_moment(value) is None:
        return f"{operator}: {shown(value)} is not a date; write it as 2026-11-30 or 2026-11-30T14:00"
    return Term(operator, value, negated)


def parse_moment(value: str) -> int | None:
    """Return the Unix time in microseconds that a cursor, or a date or time (ISO 8601), means; None: it is neither.

    A time without an offset is local, as the page shows it.
    """
    if value.isascii() and value.isdecimal() and len(value) <= _CURSOR_DIGITS:
        return int(value)
    if "-" not in value:
        return None
    try:
        return int(datetime.fromisoformat(value).timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None


def _parse_token(name: str, value: str, *, negated: bool, quoted: bool) -> Iterator[Term | str]:
    """Yield the condition that a part of a search means, and hints."""
    operator = name.lower()
    if operator in OPERATORS:
        yield parse_term(operator, value, negated=negated)
    elif not name and not quoted and value.endswith(":") and value[:-1].lower() in OPERATORS:
        yield parse_term(value[:-1].lower(), "")
    elif name:
        yield Term("", f"{name}:{value}", negated)
        if quoted or not value.startswith("//"):  # it is no URL
            near = suggestion(name, OPERATORS).lstrip("; ")
            known = ", ".join(OPERATORS)
            yield f"{cut(name, 40)}: is not an operator, so it was searched as text; {near or f'operators: {known}'}"
    elif value.strip():
        yield Term("", value, negated)
    else:
        yield 'the phrase "" is empty, and was left out'
