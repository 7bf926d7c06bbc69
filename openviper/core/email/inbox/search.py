"""Search the inbox."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from openviper.core.email.inbox.entries import Entry

__all__ = ["Query", "search"]


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions that a message must all meet; upper and lower case are equal.

    ``words``: each occurs in the subject, the addresses, the text, the Message-ID or the state. ``to``: a part of a
    recipient. ``subject``: a part of the subject. ``state``: the newest step's kind. ``after``: arrived after this
    cursor. ``mailer``: the name of the mailer that was asked for.
    """

    words: tuple[str, ...] = ()
    to: str = ""
    subject: str = ""
    state: str = ""
    after: int = 0
    mailer: str = ""

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Query":
        """Make a query from the URL's ``q``, ``to``, ``subject``, ``state``, ``mailer`` and ``after`` (a cursor)."""
        after = parameters.get("after", "")
        return cls(
            words=tuple(parameters.get("q", "").casefold().split()),
            to=parameters.get("to", "").casefold(),
            subject=parameters.get("subject", "").casefold(),
            state=parameters.get("state", ""),
            mailer=parameters.get("mailer", ""),
            after=int(after) if after.isascii() and after.isdecimal() and len(after) < 20 else 0,
        )

    def matches(self, entry: Entry) -> bool:
        """True if ``entry`` meets all conditions."""
        if entry.arrived <= self.after or (self.state and entry.state != self.state):
            return False
        if self.mailer and entry.prepared.mailer != self.mailer:
            return False
        if self.subject and self.subject not in entry.prepared.subject.casefold():
            return False
        if self.to and not any(self.to in recipient.casefold() for recipient in entry.envelope.recipients):
            return False
        if not self.words:
            return True
        text = _searchable_text(entry)
        return all(word in text for word in self.words)


def search(entries: Iterable[Entry], query: Query) -> list[Entry]:
    """Return the entries that match ``query``, in their order. Reads whole texts: use a thread."""
    return [entry for entry in entries if query.matches(entry)]


def _searchable_text(entry: Entry) -> str:
    prepared = entry.prepared
    people = (prepared.sender, *prepared.to, *prepared.cc, *prepared.bcc, *prepared.reply_to)
    parts = (prepared.subject, *map(str, people), *entry.envelope.recipients, prepared.text or "")
    return "\n".join((*parts, prepared.message_id, entry.status)).casefold()
