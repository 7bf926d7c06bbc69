"""Which messages a query means."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from openviper.core.email.inbox.store import Entry

__all__ = ["Query", "matching"]


@dataclass(frozen=True, slots=True)
class Query:
    """All that is given has to fit; letters fit in either case.

    ``words``: each somewhere in the subject, the addresses, the text, the Message-ID or the state. ``to`` and
    ``subject``: contained in one of the recipients, in the subject. ``state``: the newest step.
    """

    words: tuple[str, ...] = ()
    to: str = ""
    subject: str = ""
    state: str = ""
    after: int = 0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Query":
        """From ``q``, ``to``, ``subject``, ``state`` and ``after`` (a cursor) of an address."""
        after = parameters.get("after", "")
        return cls(
            words=tuple(parameters.get("q", "").casefold().split()),
            to=parameters.get("to", "").casefold(),
            subject=parameters.get("subject", "").casefold(),
            state=parameters.get("state", ""),
            after=int(after) if after.isascii() and after.isdecimal() and len(after) < 20 else 0,
        )

    def fits(self, entry: Entry) -> bool:
        """Whether the query means ``entry``."""
        if entry.arrived <= self.after or (self.state and entry.state != self.state):
            return False
        if self.subject and self.subject not in entry.prepared.subject.casefold():
            return False
        if self.to and not any(self.to in recipient.casefold() for recipient in entry.envelope.recipients):
            return False
        if not self.words:
            return True
        everything = _everything(entry)
        return all(word in everything for word in self.words)


def matching(entries: Iterable[Entry], query: Query) -> list[Entry]:
    """The entries that ``query`` means, in their order. Reads whole texts: use a thread."""
    return [entry for entry in entries if query.fits(entry)]


def _everything(entry: Entry) -> str:
    prepared = entry.prepared
    people = (prepared.sender, *prepared.to, *prepared.cc, *prepared.bcc, *prepared.reply_to)
    parts = (prepared.subject, *map(str, people), *entry.envelope.recipients, prepared.text or "")
    return "\n".join((*parts, prepared.message_id, entry.status)).casefold()
