"""Measure whether the inbox page is as quick with 5,000 messages as with 500: in memory, and in a shared folder.

``python benchmarks/inbox.py`` fills two inboxes of each kind and lets both answer the same requests in turn, so that
other load affects both. A row has the median milliseconds of processor time of each, and their ratio. The messages
differ as real ones do: in words, names, links, headers and files. ``--only page`` measures the rows whose names have
the word. What is found is as much in both, or more than a page shows.
"""

# ruff: noqa: E402 - this checkout comes first on the path

import argparse
import asyncio
import itertools
import os
import platform
import random
import statistics
import string
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent), str(_HERE / "sending")]

import httpx
from tables import markdown, put_below

from openviper.conf import override
from openviper.core.email import AttachmentData
from openviper.core.email.delivery import Mailer
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.app import Inbox
from openviper.core.email.inbox.entries import key_of
from openviper.core.email.inbox.folder import Folder, Unwritten
from openviper.core.email.inbox.folder_store import FolderStore
from openviper.core.email.inbox.query import Term
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.store import MemoryStore, Store
from openviper.core.email.message import EmailMessageData, OutgoingMessage, check_message
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.settings import EmailSettings

_FEW, _MANY = 500, 5000
_HEADING = "## 500 and 5,000 messages in the inbox"
_SEED = 17
_BEGAN = 1_796_000_000.0
_NO_LIMIT = 10**10
_SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
_clock = time.process_time  # of all threads, the system's part included: it does not depend on what else runs

_SEARCHES = {
    "a word that nothing has": "unobtainium",
    "a word that one old message has": "quicksilver",
    "a word that all have": "order",
    "a part of a word": "ilverm",
    "two letters that nothing has": "q!",
    "two letters that all have": "or",
    "a phrase that all have": '"thank you for your order"',
    "a phrase that nothing has": '"order your for"',
    "without a word that one has": "-quicksilver",
    "without a word that all have": "-order",
    "three words": "thank order quicksilver",
    "Greek": "ευχαριστούμε",
    "Greek that nothing has": "θάλασσα",
    "Japanese": "注文",
    "Japanese that nothing has": "山川",
    "a header": "x-order:",
    "a header's value": "a-0000012",
    "a file name": "invoice-12.pdf",
    "a file name that nothing has": "invoice-x.pdf",
    "from:": "from:orders@shop",
    "from: nobody": "from:nobody",
    "to:": "to:reader12@",
    "to: nobody": "to:nobody",
    "cc:": "cc:carl",
    "bcc:": "bcc:hidden",
    "subject:": "subject:Order",
    "subject: none": "subject:unobtainium",
    "-subject:": "-subject:order",
    "template: none": "template:unobtainium",
    "has:attachment": "has:attachment",
    "-has:attachment": "-has:attachment",
    "is:unread": "is:unread",
    "is:read, none": "is:read",
    "state:failed": "state:failed",
    "state:retrying, none": "state:retrying",
    "mailer:": "mailer:bulk",
    "mailer: none": "mailer:other",
    "before: none": "before:2000-01-01",
    "after:": "after:2000-01-01",
    "after: none": "after:2100-01-01",
    "a state as a word": "failed",
}


@dataclass
class _Case:
    """A filled inbox; ``write`` records events: in a folder, as another process does it."""

    store: Store
    client: httpx.AsyncClient
    write: Callable[[Iterable[MessageEvent]], None]
    look: Callable[[], object]
    newest: list[str]
    spare: list[OutgoingMessage]


_Timed = Callable[[_Case], Awaitable[float]]
"""Returns how many seconds something took."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["memory", "folder"], action="append", help="default: both")
    parser.add_argument("--runs", type=int, default=15, help="of which a row has the median")
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument(
        "--into", type=Path, help=f"Markdown file whose section {_HEADING!r} gets a table of the groups"
    )
    options = parser.parse_args()
    groups: list[list[str]] = []
    with override(DEBUG=True):
        for kind in options.kind or ("memory", "folder"):
            groups += asyncio.run(_measure(kind, options.runs, options.only))
    head = [
        "inbox",
        "what",
        "rows",
        f"ms with {_FEW}",
        f"ms with {_MANY:,}",
        "largest ratio",
    ]
    table = markdown(head, groups)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = f"{time.strftime('%Y-%m-%d')}; {machine}; load average {os.getloadavg()[0]:.1f}.\n\n{table}"
    print(text)
    if options.into is not None:
        put_below(_HEADING, text, options.into)


async def _measure(kind: str, runs: int, only: str) -> list[list[str]]:
    """Print all rows; return each group's row with the largest ratio."""
    messages = await _make_messages(_MANY + 4 * runs)
    worst: dict[str, tuple[float, float, float, int]] = {}
    async with AsyncExitStack() as stack:
        cases = [await stack.enter_async_context(_filled(kind, messages, count)) for count in (_FEW, _MANY)]
        for (group, name), call in _requests().items():
            if only not in f"{group}: {name}":
                continue
            for case in cases:
                await call(case)
            times = [[await call(case) for case in cases] for _ in range(runs)]
            few, many = (statistics.median(each) * 1000 for each in zip(*times, strict=True))
            print(f"{kind:6} {f'{group}: {name}':60} {few:8.2f} {many:8.2f} {many / few:5.1f}", flush=True)
            before = worst.get(group, (0.0, 0.0, 0.0, 0))
            worst[group] = (*max(before[:3], (many / few, few, many)), before[3] + 1)
    return [
        [kind, group, str(rows), f"{few:.2f}", f"{many:.2f}", f"{ratio:.1f}"]
        for group, (ratio, few, many, rows) in worst.items()
    ]


def _requests() -> dict[tuple[str, str], _Timed]:
    """Return what is measured, by group and name."""
    calls: dict[tuple[str, str], _Timed] = {
        ("list", "page"): _get(""),
        ("list", "second page"): _get("?page=2"),
        ("list", "a mailer's page"): _get("?mailer=bulk"),
        ("list", "API, 1 message"): _get("api/messages?limit=1"),
        ("list", "API, 100 messages"): _get("api/messages?limit=100"),
        ("list", "API, 500 messages"): _get("api/messages"),
        ("list", "API, a state that none has"): _get("api/messages?state=retrying"),
        ("list", "API, wait for the newest"): _get("api/messages/wait"),
        ("open", "page"): _get("{key}"),
        ("open", "page, in a search"): _get("{key}?q=order+thank"),
        ("open", "page, in a search that finds another"): _get("{key}?q=quicksilver"),
        ("open", "HTML"): _get("{key}/html"),
        ("open", "API"): _get("api/messages/{key}"),
        ("change", "mark as read, then as unread"): _mark,
        ("change", "delete"): _delete,
        ("change", "record a message"): _record,
        ("open page that waits", "look for changes"): _look,
        ("open page that waits", "look for changes, after one"): _after_change(_look),
        ("request after a change", "list, page"): _after_change(_get("")),
        ("request after a change", "list, API"): _after_change(_get("api/messages?limit=1")),
        ("request after a change", "search, API"): _after_change(_get("api/messages?q=unobtainium")),
        ("request after a new message", "list, API"): _after_adding(_get("api/messages?limit=1")),
        ("request after a new message", "search, page"): _after_adding(_get("?q=unobtainium")),
        ("request after a new message", "search, API"): _after_adding(_get("api/messages?q=unobtainium")),
        ("search, for the first time", "two letters that nothing has"): _get_next(f"{char}!" for char in _LETTERS),
        ("search, for the first time", "a word that nothing has"): _get_next(f"unobtainium{n}" for n in _NUMBERS),
        ("search, for the first time", "a word that one has"): _get_next(f"invoice-{4 * n}.pdf" for n in _NUMBERS),
        ("search, for the first time", "to: nobody"): _get_next(f"to:nobody{n}" for n in _NUMBERS),
        ("search, for the first time", "a phrase that nothing has"): _get_next(f'"order nr{n}"' for n in _NUMBERS),
        ("phrase that nothing has, of words that all have, for the first time", "API"): _get_next(
            f'"{" ".join(words)}"' for words in itertools.permutations(["order", "your", "for", "you", "thank"])
        ),
    }
    for name, text in _SEARCHES.items():
        calls["search, page", name] = _get(f"?q={quote_plus(text)}")
        calls["search, API", name] = _get(f"api/messages?limit=100&q={quote_plus(text)}")
    return calls


_LETTERS, _NUMBERS = string.ascii_lowercase, range(100, 10_000)


async def _fetch(case: _Case, path: str, method: str = "GET", **options: Any) -> float:
    began = _clock()
    answer = await case.client.request(method, f"/_mail/{path}", **options)
    took = _clock() - began
    assert answer.status_code in (200, 204, 303), answer.text
    return took


def _get(path: str) -> _Timed:
    async def call(case: _Case) -> float:
        return await _fetch(case, path.replace("{key}", case.newest[0]))

    return call


def _get_next(texts: Iterable[str]) -> _Timed:
    """Search for the next text, which the inbox has not been asked for before."""
    kept = list(itertools.islice(texts, 100))
    position: dict[int, int] = {}

    async def call(case: _Case) -> float:
        number = position[id(case)] = position.get(id(case), -1) + 1
        return await _fetch(case, f"api/messages?limit=100&q={quote_plus(kept[number])}")

    return call


async def _mark(case: _Case) -> float:
    times = [
        await _fetch(case, "selected", "POST", data={"key": case.newest[0], "action": action}, headers=_SAME_ORIGIN)
        for action in ("read", "unread")
    ]
    return sum(times)


async def _delete(case: _Case) -> float:
    await _record(case)
    return await _fetch(case, f"api/messages/{case.newest.pop(0)}", "DELETE")


async def _record(case: _Case) -> float:
    """Record a new message, whose place is made by removing the oldest."""
    message = case.spare.pop()
    case.spare.insert(0, message)
    message_id = f"<2{random.random()}@shop.example>"
    message = message._replace(prepared=message.prepared._replace(message_id=message_id))
    events = list(_events(message, time.time()))
    began = _clock()
    await asyncio.to_thread(case.write, events)
    took = _clock() - began
    case.newest.insert(0, key_of(message_id))
    return took


async def _look(case: _Case) -> float:
    began = _clock()
    await asyncio.to_thread(case.look)
    return _clock() - began


def _after_change(then: _Timed) -> _Timed:
    async def call(case: _Case) -> float:
        message = await case.store.load(case.newest[0])
        assert message is not None
        event = MessageEvent(kind="delivered", message_id=message.message_id, message=message, at=time.time())
        await asyncio.to_thread(case.write, [event])
        return await then(case)

    return call


def _after_adding(then: _Timed) -> _Timed:
    async def call(case: _Case) -> float:
        await _record(case)
        return await then(case)

    return call


@asynccontextmanager
async def _filled(kind: str, messages: Sequence[OutgoingMessage], count: int) -> AsyncIterator[_Case]:
    """Open an inbox that is full with the first ``count`` messages."""
    mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="orders@shop.example"))
    with tempfile.TemporaryDirectory(prefix="openviper-bench-") as folder:
        store, write, look = _make_store(kind, Path(folder), count)
        numbered = enumerate(messages[:count])
        events = [event for number, message in numbered for event in _events(message, _BEGAN + number)]
        began = _clock()
        await asyncio.to_thread(write, events)
        took = _clock() - began
        inbox = Inbox(mailer, store)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inbox), base_url="http://localhost") as client:
            case = _Case(store, client, write, look, [], list(messages[_MANY:]))
            first = [
                await _fetch(case, path) for path in ("api/messages?limit=1", "api/messages?q=unobtainium&limit=1")
            ]
            print(
                f"{kind}, {count} messages: accepting {took / count * 1e6:.0f} us each;"
                f" first list {first[0] * 1000:.0f} ms, first search {first[1] * 1000:.0f} ms"
            )
            listed = (await client.get("/_mail/api/messages?limit=5")).json()["messages"]
            case.newest = [message["key"] for message in listed]
            await _print_memory(kind, store)
            yield case
        await inbox.aclose()


async def _print_memory(kind: str, store: Store) -> None:
    listing = await store.newest_first()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    searcher = Searcher()
    await asyncio.to_thread(searcher.search, listing, [Term("", "unobtainium")])
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{kind}, {len(listing)} messages: the index takes {(after - before) / 1e6:.1f} MB")


def _make_store(
    kind: str, path: Path, count: int
) -> tuple[Store, Callable[[Iterable[MessageEvent]], None], Callable[[], object]]:
    if kind == "memory":
        store = MemoryStore(max_messages=count, max_bytes=_NO_LIMIT)

        def record(events: Iterable[MessageEvent]) -> None:
            for event in events:
                store.record(event)

        return store, record, lambda: store.changes.version
    own, other = (Folder(path, max_messages=count, max_bytes=_NO_LIMIT) for _ in range(2))

    def write(events: Iterable[MessageEvent]) -> None:
        unwritten: dict[str, Unwritten] = {}
        for event in events:
            if event.message_id in unwritten:
                unwritten[event.message_id].add(event)
            else:
                unwritten[event.message_id] = Unwritten(event)
        other.write_all(unwritten.values())

    return FolderStore(own, sensitive=True), write, own.version


def _events(message: OutgoingMessage, at: float) -> Iterable[MessageEvent]:
    failed = message.message_id.startswith("<0")
    yield MessageEvent(kind="sending", message_id=message.message_id, message=message, at=at)
    yield MessageEvent(
        kind="failed" if failed else "delivered", message_id=message.message_id, message=message, at=at + 0.1
    )


async def _make_messages(count: int) -> list[OutgoingMessage]:
    """Make different messages of about 2 kB: words of a vocabulary, links with a token, names, headers and files."""
    draw = random.Random(_SEED)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 10))) for _ in range(3000)]
    special = {12: " quicksilvermine", 5: " ευχαριστούμε", 7: " ご注文ありがとうございます"}
    made = []
    for number in range(count):
        token = "".join(draw.choices(string.ascii_letters + string.digits, k=80))
        text = (
            f"Thank you for your order {number}.\n{' '.join(draw.choices(words, k=200))}{special.get(number, '')}\n"
            f"https://shop.example/orders/{number}?token={token}\nMit freundlichen Grüßen"
        )
        quarter = number % 4 == 0
        message = EmailMessageData(
            [f"Reader {number} <reader{number}@example.com>"],
            f"Order {number}: {' '.join(draw.choices(words, k=3))}",
            text=text,
            html=f"<p>{text}</p>",
            cc=["Carl <carl@example.com>"] if quarter else [],
            bcc=["hidden@example.com"] if quarter else [],
            attachments=[AttachmentData(f"invoice-{number}.pdf", b"%PDF", "application/pdf")] if quarter else [],
            headers={"X-Order": f"A-{number:07}"},
            sender="Shop <orders@shop.example>",
            mailer="bulk" if quarter else None,
        )
        outgoing = await serialise_message(check_message(message, default_sender=None), max_message_bytes=10**7)
        message_id = f"<{0 if quarter else 2}{number}@shop.example>"
        made.append(outgoing._replace(prepared=outgoing.prepared._replace(message_id=message_id)))
    return made


if __name__ == "__main__":
    main()
