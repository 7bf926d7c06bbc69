"""Find the messages that meet the conditions of a search."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from openviper.core.email.addresses import Address
from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.query import PARTLY_DELIVERED, STATES, Term, parse_moment
from openviper.core.email.message.origin import read_origin

__all__ = ["Searcher"]

Condition = Callable[[Entry], bool]


class Searcher:
    """Searches entries, and keeps each message's searchable texts for the next search.

    Upper and lower case are equal, and so are spaces and line ends.
    """

    def __init__(self) -> None:
        self._texts: dict[str, Mapping[str, str]] = {}
        self._prepared: dict[str, object] = {}  # the messages of which these are the texts

    def search(self, entries: Sequence[Entry], terms: Iterable[Term]) -> Sequence[Entry]:
        """Return the entries that meet all conditions, in their order. Reads whole texts: use a thread."""
        for term in terms:
            make = _CONDITIONS.get(term.operator)
            if make is not None:
                condition, wanted = make(term.value), not term.negated
                entries = [entry for entry in entries if condition(entry) is wanted]
            else:
                entries = self._search_text(entries, term)
        return entries

    def forget_removed(self, entries: Sequence[Entry]) -> None:
        """Forget the texts of messages that are not among ``entries``, the whole store."""
        if len(self._texts) > len(entries):
            keys = {entry.key for entry in entries}
            for key in [key for key in tuple(self._texts) if key not in keys]:
                self._prepared.pop(key, None)
                self._texts.pop(key, None)

    def _search_text(self, entries: Sequence[Entry], term: Term) -> Sequence[Entry]:
        """Look for a part of the text, in one expression for all messages: there may be thousands."""
        text, wanted, value = self._texts_of(entries), not term.negated, _normalise(term.value)
        operator = term.operator
        # The state is looked at only if it can matter: it takes longer than all texts.
        if not operator and any(value in state.replace("-", " ") for state in STATES):
            return [one for one in entries if (value in text[one.key][operator] or value in one.status) is wanted]
        return [one for one in entries if (value in text[one.key][operator]) is wanted]

    def _texts_of(self, entries: Sequence[Entry]) -> Mapping[str, Mapping[str, str]]:
        """Return the texts of at least ``entries`` by key, and make those that are missing or of an earlier content."""
        texts, prepared = self._texts, self._prepared
        for entry in [one for one in entries if prepared.get(one.key) is not one.prepared]:
            texts[entry.key] = _searchable_texts(entry)
            prepared[entry.key] = entry.prepared
        return texts


def _searchable_texts(entry: Entry) -> Mapping[str, str]:
    """Return the text that each operator searches; the one of words and phrases has the name ``""``.

    Values stand in lines of their own, so that nothing matches across two of them.
    """
    prepared = entry.prepared
    files = [part.filename for part in prepared.attachments]
    if prepared.calendar is not None:
        files.append(prepared.calendar.filename)
    texts = {
        "from": _lines(_spellings(prepared.sender)),
        "to": _lines((*_all_spellings(prepared.to), *entry.envelope.recipients)),
        "cc": _lines(_all_spellings(prepared.cc)),
        "bcc": _lines(_all_spellings(prepared.bcc)),
        "subject": _normalise(prepared.subject),
        "template": _normalise(read_origin(prepared).template or ""),
    }
    others = (
        *_all_spellings(prepared.reply_to),
        prepared.text or "",
        prepared.message_id,
        *files,
        *(f"{name}: {value}" for name, value in prepared.headers),
    )
    return {**texts, "": "\n".join((*texts.values(), _lines(others)))}


def _all_spellings(addresses: Iterable[Address]) -> list[str]:
    return [spelling for address in addresses for spelling in _spellings(address)]


def _spellings(address: Address) -> tuple[str, ...]:
    """Return the address as the page shows it, and with a name also as people type it: ``Ana <ana@shop.example>``."""
    plain = f"{address.display_name} <{address.addr_spec}>"
    return (str(address), plain) if address.display_name else (address.addr_spec,)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(map(_normalise, texts))


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def _is(value: str) -> Condition:
    read = value == "read"
    return lambda entry: entry.read is read


def _has_attachment(_value: str) -> Condition:
    return lambda entry: any(not part.inline for part in entry.prepared.attachments)


def _state(value: str) -> Condition:
    if value == PARTLY_DELIVERED:
        return lambda entry: entry.state == "delivered" and bool(entry.missed)
    return lambda entry: entry.state == value


def _mailer(value: str) -> Condition:
    return lambda entry: entry.prepared.mailer == value


def _before(value: str) -> Condition:
    bound = parse_moment(value) or 0
    return lambda entry: entry.arrived < bound


def _after(value: str) -> Condition:
    bound = parse_moment(value) or 0
    if value.isdecimal():  # a cursor
        return lambda entry: entry.arrived > bound
    return lambda entry: entry.arrived >= bound


_CONDITIONS: Mapping[str, Callable[[str], Condition]] = {
    "has": _has_attachment,
    "is": _is,
    "state": _state,
    "mailer": _mailer,
    "before": _before,
    "after": _after,
}
