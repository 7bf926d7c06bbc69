"""Find the messages that meet the conditions of a search."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress, count
from threading import Lock

from openviper.core.email.addresses import Address
from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.query import PARTLY_DELIVERED, STATES, Term, parse_moment
from openviper.core.email.inbox.vocabulary import Vocabulary
from openviper.core.email.message.origin import read_origin

__all__ = ["Searcher"]

_MARKS = ("has", "is", "mailer", "state")  # operators with exact values
_STATUS = "status"  # the mark of the state as the page shows it, which words and phrases find

_MOST_CHECKED = 100  # values
_FEW = 20  # messages, whose texts are read sooner than the vocabulary
_NEW = -1  # no message's number

_FLAGS, _DIGITS = bytes.maketrans(b"01", b"\0\1"), bytes.maketrans(b"\0\1", b"01")


@dataclass(slots=True)
class _Checked:
    """The messages whose text was compared with a value, and those of them that have it."""

    known: int = 0
    found: int = 0


class Searcher:
    """Searches entries by an index, which follows each search's entries.

    A message has a number in the index as long as it is in the inbox. A set of messages is an int, with the bit
    ``1 << number`` for each of them. Upper and lower case are equal, and so are spaces and line ends.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._listed: Sequence[Entry] = ()
        self._order: Sequence[int] = ()  # numbers of the listed entries
        self._numbers: dict[int, int] = {}  # by the entry's id()
        self._numbers_by_key: dict[str, int] = {}
        self._present = 0  # all messages
        self._free: list[int] = []
        # By number:
        self._entries: list[Entry | None] = []
        self._texts: list[Mapping[str, str]] = []
        self._arrived: list[int] = []
        self._marked: dict[tuple[str, str], int] = {}  # messages by operator and value
        self._vocabulary = Vocabulary()
        self._without_texts: set[int] = set()  # numbers of messages that are not in the vocabulary yet
        # By operator and value: a page that updates itself repeats its search, and so does a request that waits.
        self._checked: dict[tuple[str, str], _Checked] = {}

    def search(self, entries: Sequence[Entry], terms: Sequence[Term]) -> Sequence[Entry]:
        """Return the entries that meet all conditions, in their order. Reads the texts of new messages: use a thread.

        ``entries`` is the whole store, which the index then equals; it must not be changed afterwards.
        """
        with self._lock:
            # Without conditions the index is not needed, and only must not keep what was removed from the store.
            if terms or len(entries) < len(self._listed):
                self._follow(entries)
            found = None
            for term in terms:
                among = self._present if found is None else found
                matching = self._find(term, among)
                found = among & ~matching if term.negated else among & matching
            if found is None:
                return entries
            flags = _to_flags(found, len(self._entries))
            return [*compress(entries, map(flags.__getitem__, self._order))]

    def _follow(self, entries: Sequence[Entry]) -> None:
        """Add, replace and remove what differs from the entries of the last search."""
        if entries is self._listed:
            return
        numbers = self._numbers
        order = [numbers.get(id(entry), _NEW) for entry in entries]
        for position in _positions(order, _NEW):
            order[position] = self._put(entries[position])
        if len(numbers) > len(order):
            for number in {*numbers.values()}.difference(order):
                self._remove(number)
        self._listed, self._order = entries, order

    def _put(self, entry: Entry) -> int:
        """Add a message, or replace it by what has become of it; return its number."""
        number = self._numbers_by_key.get(entry.key)
        if number is None:
            number = self._new_number()
            self._numbers_by_key[entry.key] = number
            self._present |= 1 << number
            self._without_texts.add(number)
        elif (earlier := self._entries[number]) is not None:
            self._unmark(number, earlier)
            if earlier.prepared is not entry.prepared:
                self._remove_text(number)
                self._without_texts.add(number)
        self._entries[number] = entry
        self._numbers[id(entry)] = number
        self._arrived[number] = entry.arrived
        for mark in _marks_of(entry):
            self._marked[mark] = self._marked.get(mark, 0) | 1 << number
        return number

    def _new_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._entries.append(None)
        self._texts.append({})
        self._arrived.append(0)
        return len(self._entries) - 1

    def _remove(self, number: int) -> None:
        entry = self._entries[number]
        assert entry is not None
        self._unmark(number, entry)
        self._remove_text(number)
        del self._numbers_by_key[entry.key]
        self._present &= ~(1 << number)
        self._entries[number] = None
        self._free.append(number)

    def _unmark(self, number: int, entry: Entry) -> None:
        del self._numbers[id(entry)]
        for mark in _marks_of(entry):
            self._marked[mark] &= ~(1 << number)

    def _remove_text(self, number: int) -> None:
        if number in self._without_texts:
            self._without_texts.remove(number)
        else:
            self._vocabulary.remove(number, _words(self._texts[number]))
            self._texts[number] = {}
            for checked in self._checked.values():
                checked.known &= ~(1 << number)
                checked.found &= ~(1 << number)

    def _find(self, term: Term, among: int) -> int:
        """Return the messages ``among`` some that meet a condition, as if it were not negated, and perhaps others."""
        operator, value = term.operator, term.value
        if operator in _MARKS:
            return self._marked.get((operator, value), 0)
        if operator in ("before", "after"):
            bound = parse_moment(value) or 0
            # A cursor is a message's own moment, which is not after itself.
            after = bound.__lt__ if value.isdecimal() else bound.__le__
            return _to_bits(map(bound.__gt__ if operator == "before" else after, self._arrived))
        return self._find_text(operator, _normalise(value), among)

    def _find_text(self, operator: str, value: str, among: int) -> int:
        if len(self._checked) >= _MOST_CHECKED:
            self._checked.clear()
        checked = self._checked.setdefault((operator, value), _Checked())
        if unknown := among & ~checked.known:
            checked.known |= unknown
            checked.found |= self._look_up(operator, value, unknown)
        found = checked.found & among
        # The state is no part of the text, because it changes.
        if not operator and any(value in state.replace("-", " ") for state in STATES):
            for (mark, status), messages in self._marked.items():
                if mark == _STATUS and value in status:
                    found |= messages
        return found

    def _look_up(self, operator: str, value: str, among: int) -> int:
        """Return the messages ``among`` some that have the value in the operator's text."""
        self._add_texts()
        few = among.bit_count() <= _FEW
        found = among if few else self._vocabulary.find(value) & among
        if operator or few or " " in value:
            texts = self._texts
            flags = bytearray(len(texts))
            for number in compress(count(), _to_flags(found, len(texts))):
                flags[number] = value in texts[number][operator]
            found = _to_bits(flags)
        return found

    def _add_texts(self) -> None:
        """Add the texts of new messages to the vocabulary."""
        for number in self._without_texts:
            entry = self._entries[number]
            assert entry is not None
            self._texts[number] = _searchable_texts(entry)
            self._vocabulary.add(number, _words(self._texts[number]))
        self._without_texts.clear()


def _positions(numbers: Sequence[int], wanted: int) -> Iterator[int]:
    """Yield the positions of ``wanted``; there may be few among thousands."""
    position = -1
    with suppress(ValueError):
        while True:
            position = numbers.index(wanted, position + 1)
            yield position


def _to_flags(messages: int, length: int) -> bytes:
    """Return a byte for each number below ``length``: 1 if it is in the set, else 0."""
    return f"{messages:0{length}b}"[::-1].encode().translate(_FLAGS)


def _to_bits(flags: Iterable[int]) -> int:
    """Return the set of the numbers at which ``flags`` has 1."""
    return int(bytes(flags)[::-1].translate(_DIGITS) or b"0", 2)


def _marks_of(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield the operators with exact values that find the message."""
    yield "is", "read" if entry.read else "unread"
    yield "mailer", entry.prepared.mailer
    yield "state", entry.state
    status = entry.status
    yield _STATUS, status
    if status != entry.state:
        yield "state", PARTLY_DELIVERED
    if any(not part.inline for part in entry.prepared.attachments):
        yield "has", "attachment"


def _words(texts: Mapping[str, str]) -> set[str]:
    return set(texts[""].split())


def _searchable_texts(entry: Entry) -> Mapping[str, str]:
    """Return the text that each operator searches; the one of words and phrases, which has all, has the name ``""``.

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
