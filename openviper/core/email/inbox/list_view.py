"""Which messages the list shows, as its URL says: search, mailer and page; the links of the pages keep it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import urlencode

from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.query import ParsedQuery, Term, parse_query

__all__ = ["PAGE_SIZE", "Chip", "ListView"]

PAGE_SIZE = 100

_FILTERS = {"is:unread": "Unread", "has:attachment": "With attachment", "state:failed": "Failed"}
_LONGEST_PAGE_NUMBER = 6


class Chip(NamedTuple):
    """A link that adds a condition to the search, or removes one that is ``active``."""

    label: str
    url: str
    active: bool


@dataclass(frozen=True, slots=True)
class ListView:
    """A part of the list; ``page`` counts from 1."""

    text: str = ""
    mailer: str = ""
    page: int = 1

    @classmethod
    def from_values(cls, values: Mapping[str, str]) -> "ListView":
        """Read the fields of a URL or of a form."""
        page = values.get("page", "")
        number = int(page) if page.isascii() and page.isdecimal() and len(page) <= _LONGEST_PAGE_NUMBER else 1
        return cls(" ".join(values.get("q", "").split()), values.get("mailer", ""), max(number, 1))

    @property
    def fields(self) -> dict[str, str]:
        """Return the fields of a URL or of a form that differ from the defaults."""
        values = {"mailer": self.mailer, "q": self.text, "page": str(self.page) if self.page > 1 else ""}
        return {name: value for name, value in values.items() if value}

    @property
    def url(self) -> str:
        """Return the fields as the end of a URL: empty or ``?q=...``."""
        return f"?{urlencode(self.fields)}" if self.fields else ""

    def at(self, page: int) -> str:
        """Return the URL's end of another page."""
        return replace(self, page=page).url

    def by(self, mailer: str) -> str:
        """Return the URL's end of the first page with the mail of another mailer."""
        return replace(self, mailer=mailer, page=1).url

    def parse(self) -> ParsedQuery:
        """Return the conditions of the search, the mailer included, and hints."""
        query = parse_query(self.text)
        mailer = (Term("mailer", self.mailer),) if self.mailer else ()
        return ParsedQuery((*query.terms, *mailer), query.hints)

    def chips(self) -> list[Chip]:
        """Return the common filters, and the search's other conditions to be removed."""
        query = parse_query(self.text)
        typed = {str(term): index for index, term in enumerate(query.terms)}
        chips = [
            self._chip(label, query.without(typed[text]), active=True)
            if text in typed
            else self._chip(label, f"{self.text} {text}".strip(), active=False)
            for text, label in _FILTERS.items()
        ]
        others = [text for text in typed if text not in _FILTERS]
        return [*chips, *(self._chip(text, query.without(typed[text]), active=True) for text in others)]

    def _chip(self, label: str, text: str, *, active: bool) -> Chip:
        return Chip(label, replace(self, text=text, page=1).url, active)

    def rows(self, found: Sequence[Entry]) -> Sequence[Entry]:
        """Return the messages of this page."""
        return found[(self.page - 1) * PAGE_SIZE : self.page * PAGE_SIZE]
