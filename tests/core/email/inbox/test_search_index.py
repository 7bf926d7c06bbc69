"""The index finds what reading all messages finds, whatever was added, changed and removed since."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.prepared import make_outgoing

from openviper.core.email import AttachmentData
from openviper.core.email.addresses import Address
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.inbox.folder_store import FolderStore
from openviper.core.email.inbox.query import Term, parse_moment, parse_query
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.store import MemoryStore, Store
from openviper.core.email.inbox.vocabulary import Vocabulary
from openviper.core.email.message import EmailMessageData, OutgoingMessage, check_message
from openviper.core.email.message.serialiser import serialise_message

STEPS, KEPT = 120, 50
SYLLABLES = (
    "or",
    "der",
    "an",
    "Straße",
    "İ",
    "θά",
    "注文",
    "x",
    "1",
    "-",
    "@",
    "ab",
    "ba",
    "é",
    "ß",
    ".",
    "\U0001f600",
)
SPACES = (" ", " ", " ", "\r\n", "  ", "\t", "\n\n", "\u00a0", "\x1c")


def words(draw: random.Random, most: int) -> str:
    made = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(draw.randint(1, most))]
    return "".join(word + draw.choice(SPACES) for word in made)


def line(draw: random.Random, most: int) -> str:
    return " ".join("".join(char for char in words(draw, most) if char.isprintable()).split()) or "x"


async def make_message(draw: random.Random, number: int) -> OutgoingMessage:
    file = AttachmentData(f"{line(draw, 1)}.pdf", b"%PDF", "application/pdf")
    recipients: list[Any] = [(line(draw, 2), f"r{number}@order.test"), "ana@order.test"]
    message = EmailMessageData(
        recipients[: draw.randint(1, 2)],
        line(draw, 3),
        text=words(draw, 20),
        cc=["carl@x.test"] * draw.randint(0, 1),
        bcc=["ab1@x.test"] * draw.randint(0, 1),
        attachments=[file] * draw.randint(0, 1),
        headers={"X-Order": f"A-{number}"},
        sender="Shop <shop@order.test>",
        mailer=draw.choice([None, "bulk"]),
        sensitive=draw.random() < 0.2,
    )
    prepared = check_message(message, default_sender=None)
    outgoing = await serialise_message(prepared, max_message_bytes=10**6)
    return outgoing._replace(prepared=outgoing.prepared._replace(message_id=f"<{number}@order.test>"))


def folded(text: str) -> str:
    return " ".join(text.casefold().split())


def spelled(*addresses: Address) -> list[str]:
    return [
        spelling
        for one in addresses
        for spelling in ((str(one), f"{one.display_name} <{one.addr_spec}>") if one.display_name else (one.addr_spec,))
    ]


def values_of(entry: Entry) -> dict[str, list[str]]:
    """What each operator looks into; words and phrases also into what has the name "other"."""
    prepared = entry.prepared
    return {
        "from": spelled(prepared.sender),
        "to": [*spelled(*prepared.to), *entry.envelope.recipients],
        "cc": spelled(*prepared.cc),
        "bcc": spelled(*prepared.bcc),
        "subject": [prepared.subject],
        "template": [],
        "other": [
            prepared.text or "",
            prepared.message_id,
            *(part.filename for part in prepared.attachments),
            *(f"{name}: {value}" for name, value in prepared.headers),
        ],
    }


def meets(entry: Entry, term: Term, values: dict[str, list[str]]) -> bool:
    operator, value = term.operator, term.value
    if operator in ("before", "after"):
        bound = parse_moment(value) or 0
        return entry.arrived < bound if operator == "before" else entry.arrived > bound - (not value.isdecimal())
    exact: dict[str, Callable[[], bool]] = {
        "is": lambda: entry.read is (value == "read"),
        "has": lambda: bool(entry.prepared.attachments),
        "mailer": lambda: entry.prepared.mailer == value,
        "state": lambda: entry.status == "partly delivered" if value == "partly-delivered" else entry.state == value,
    }
    if operator in exact:
        return exact[operator]()
    if operator:
        return any(folded(value) in text for text in values[operator])
    return folded(value) in entry.status or any(folded(value) in text for each in values.values() for text in each)


class PlainSearch:
    """Reads every message."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str | None], dict[str, list[str]]] = {}

    def search(self, entries: Sequence[Entry], terms: Sequence[Term]) -> list[Entry]:
        return [
            entry
            for entry in entries
            if all(meets(entry, term, self.values(entry)) is not term.negated for term in terms)
        ]

    def values(self, entry: Entry) -> dict[str, list[str]]:
        key = entry.key, entry.prepared.text
        if key not in self._values:
            self._values[key] = {name: [*map(folded, each)] for name, each in values_of(entry).items()}
        return self._values[key]


def draw_search(draw: random.Random, entries: Sequence[Entry], plain: PlainSearch) -> str:
    """Parts of what a message has, and parts that perhaps none has."""
    parts = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        minus = draw.choice(("", "", "-"))
        operator = draw.choice(("", "", "", "", "from:", "to:", "cc:", "bcc:", "subject:", "template:", "exact"))
        if operator == "exact":
            moment = draw.choice(entries).arrived if entries else 0
            exact = (
                "is:read",
                "is:unread",
                "has:attachment",
                "mailer:bulk",
                "mailer:x",
                "state:failed",
                "state:delivered",
            )
            parts.append(minus + draw.choice((*exact, "state:partly-delivered", f"before:{moment}", f"after:{moment}")))
            continue
        text = folded(words(draw, 2))
        if entries and draw.random() < 0.7:
            text = draw.choice(
                [text for each in plain.values(draw.choice(entries)).values() for text in each] or [text]
            )
            start = draw.randrange(len(text) or 1)
            text = text[start : start + draw.randint(1, 12)].strip()
        if text := draw.choice((text, text, text.upper(), "delivered", "fail")).replace('"', ""):
            parts.append(f'{minus}{operator}"{text}"')
    return " ".join(parts)


Write = Callable[[MessageEvent], Any]


@pytest.mark.parametrize(("kind", "seed"), [("memory", 1), ("memory", 2), ("folder", 3), ("folder, redacted", 4)])
async def test_the_index_finds_what_reading_all_messages_finds(kind: str, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    other = Folder(tmp_path, max_messages=KEPT)
    store: Store
    if kind == "memory":
        store = MemoryStore(max_messages=KEPT, sensitive=True)
    else:
        store = FolderStore(Folder(tmp_path, max_messages=KEPT), sensitive=kind == "folder")
    searcher, plain = Searcher(), PlainSearch()
    messages: list[OutgoingMessage] = []
    hits: Counter[str] = Counter()
    searched = [""]
    for step in range(STEPS):
        for _ in range(draw.randint(0, 3)):
            await change(draw, store, other if kind != "memory" else None, messages)
        if kind == "folder" and step % 25 == 0:  # another process reads all files
            assert await store.newest_first() == await asyncio.to_thread(Folder(tmp_path).entries)
        listing = await store.newest_first()
        for _ in range(4):
            text = draw_search(draw, listing, plain) if draw.random() < 0.6 else draw.choice(searched)
            searched.append(text)
            terms = parse_query(text).terms
            found = await asyncio.to_thread(searcher.search, listing, terms)
            assert [entry.key for entry in found] == [entry.key for entry in plain.search(listing, terms)], text
            hits["none" if not found else "all" if len(found) == len(listing) else "some"] += 1
    await store.aclose()
    assert len(messages) > 1.2 * KEPT  # so that the oldest were removed
    assert min(hits[each] for each in ("none", "all", "some")) > 10


async def change(draw: random.Random, store: Store, other: Folder | None, messages: list[OutgoingMessage]) -> None:
    """Change the store, or the folder as another process does it."""
    keys = [entry.key for entry in await store.newest_first()]
    action = draw.choice(("add", "add", "add", "add", "step", "step", "read", "unread", "delete"))
    if not keys or action == "add":
        messages.append(await make_message(draw, len(messages)))
        await write(draw, store, other, messages[-1], "sending")
    elif action == "step":
        await write(draw, store, other, draw.choice(messages[-KEPT:]), draw.choice(("failed", "delivered", "retrying")))
    elif action == "delete":
        key = draw.choice(keys)
        await (store.delete(key) if other is None else asyncio.to_thread(other.remove, key))
        assert key not in {entry.key for entry in await store.newest_first()}
    else:
        key, read = draw.choice(keys), action == "read"
        if other is None or draw.random() < 0.5:
            await store.mark_read(key, read=read)
        else:
            await asyncio.to_thread(other.mark_read, key, read=read)
        assert {entry.key: entry.read for entry in await store.newest_first()}[key] is read


async def write(draw: random.Random, store: Store, other: Folder | None, message: OutgoingMessage, kind: Any) -> None:
    refused = message.envelope.recipients[:1] if kind == "delivered" and draw.random() < 0.3 else ()
    event = MessageEvent(
        kind=kind, message_id=message.message_id, message=message, at=1e9 + draw.random(), refused=refused
    )
    if other is None or draw.random() < 0.5:
        store.record(event)
    else:
        await asyncio.to_thread(other.write, event)


@contextmanager
def counted_lines() -> Iterator[Counter[str]]:
    """Count the lines of code that this thread carries out, by function; each round of a loop counts."""
    lines: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            lines[frame.f_code.co_qualname] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


async def filled(count: int) -> MemoryStore:
    one = await make_outgoing(text="Thank you for your order")
    store = MemoryStore(max_messages=count)
    for number in range(count):
        prepared = one.prepared._replace(message_id=f"<{number}@example.test>", subject=f"Order {number}")
        message = one._replace(prepared=prepared)
        store.record(MessageEvent(kind="delivered", message_id=message.message_id, message=message, at=1.0 + number))
    return store


@pytest.mark.parametrize("text", ["absent", "q!", '"absent words"', "-absent", "to:absent", "θάλασσα"])
async def test_a_search_for_a_word_that_nothing_has_reads_no_message(text: str) -> None:
    terms = parse_query(text).terms
    counts = []
    for count in (50, 500):
        entries = await (await filled(count)).newest_first()
        searcher = Searcher()
        searcher.search(entries, parse_query("order").terms)
        with counted_lines() as lines:
            searcher.search(entries, terms)
        counts.append(lines.total())
    assert counts[0] == counts[1]


async def test_after_a_change_a_repeated_search_reads_the_changed_message_alone() -> None:
    store, terms = await filled(100), parse_query('"thank you"').terms
    searcher = Searcher()
    assert len(searcher.search(await store.newest_first(), terms)) == 100
    message = await make_outgoing(text="Please wait")
    store.record(MessageEvent(kind="sending", message_id=message.message_id, message=message, at=999.0))
    listing = await store.newest_first()
    with counted_lines() as lines:
        found = searcher.search(listing, terms)
    assert found == [*listing[1:]]
    assert lines["_searchable_texts"] > 0
    assert lines["Vocabulary.find"] == 0
    assert lines["Searcher._look_up"] < 20


def test_a_vocabulary_keeps_no_words_of_removed_messages() -> None:
    vocabulary = Vocabulary()
    for number in range(2000):
        vocabulary.add(number % 10, {"order", f"word{number}"})
        assert vocabulary.find(f"ord{number}"[:8]) == 1 << number % 10
        vocabulary.remove(number % 10, {"order", f"word{number}"})
    assert vocabulary.find("order") == 0
    vocabulary.add(3, {"order", "θάλασσα"})
    assert [vocabulary.find(part) for part in ("rde", "λα", "word7", "order θάλ", "θάλασσα ord")] == [8, 8, 0, 8, 8]
    assert [vocabulary.find(phrase) for phrase in ("rder order ord", "order word7 order", "rder rde ord")] == [8, 0, 0]
