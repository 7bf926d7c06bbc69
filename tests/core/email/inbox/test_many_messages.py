"""With ten times as many messages the inbox shows no more rows, prepares no more texts and opens no more files."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from support.inbox import keys_of
from support.prepared import make_outgoing

from openviper.core.email.delivery import Mailer
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox import Inbox
from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.inbox.query import parse_query
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.store import MemoryStore
from openviper.core.email.settings import EmailSettings

FEW, MANY = 500, 5000


async def record(write: Callable[[MessageEvent], None], count: int) -> None:
    one = await make_outgoing(text="Thank you for your order")
    for number in range(count):
        prepared = one.prepared._replace(message_id=f"<{number}@example.test>", subject=f"Order {number}")
        message = one._replace(prepared=prepared)
        for kind in ("sending", "delivered"):
            event: Any = {"kind": kind, "message_id": message.message_id, "message": message, "at": 1.0 + number}
            write(MessageEvent(**event))


async def filled(count: int) -> MemoryStore:
    store = MemoryStore(max_messages=MANY)
    await record(store.record, count)
    return store


@dataclass
class Answers:
    rows: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


async def answers(count: int) -> Answers:
    """What the page and the API answer where the store has ``count`` messages."""
    mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="shop@example.test"))
    inbox = Inbox(mailer, await filled(count))
    found = Answers()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(inbox), base_url="http://localhost") as client:
        for path in ("", "?page=2", "?q=order+thank", "?q=order&page=3", "?q=absent"):
            page = (await client.get(f"/_mail/{path}")).text
            found.rows[path], found.sizes[path] = len(keys_of(page)), len(page)
        (key, *_) = keys_of((await client.get("/_mail/")).text)
        found.sizes["open"] = len((await client.get(f"/_mail/{key}?q=order")).text)
        for path in ("", "?limit=10", "?q=order"):
            listed = await client.get(f"/_mail/api/messages{path}")
            found.rows[f"api{path}"], found.sizes[f"api{path}"] = len(listed.json()["messages"]), len(listed.content)
    await inbox.aclose()
    return found


async def test_ten_times_as_many_messages_make_no_longer_answers() -> None:
    few, many = await answers(FEW), await answers(MANY)
    assert few.rows == many.rows
    assert many.rows == {
        "": 100, "?page=2": 100, "?q=order+thank": 100, "?q=order&page=3": 100, "?q=absent": 0,
        "api": 500, "api?limit=10": 10, "api?q=order": 500,
    }  # fmt: skip
    assert {path: size for path, size in many.sizes.items() if size > 1.1 * few.sizes[path]} == {}


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the calls of Python functions in this thread, by name."""
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_name] += 1

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("text", ["order", "absent", '"thank you"', "-thank", "to:user", "subject:7", "-from:absent"])
async def test_a_search_calls_nothing_for_each_message_that_it_knows(text: str) -> None:
    terms = parse_query(text).terms
    calls = []
    for count in (FEW, MANY):
        entries = await (await filled(count)).newest_first()
        searcher = Searcher()
        searcher.search(entries, terms)
        with counted_calls() as counted:
            searcher.search(entries, terms)
        calls.append(counted.total())
    assert calls[1] == calls[0] < 50


async def test_texts_are_made_once_and_anew_only_for_other_content() -> None:
    store = await filled(20)
    searcher, terms = Searcher(), parse_query("thank").terms
    for expected in (20, 0):
        with counted_calls() as counted:
            assert len(searcher.search(await store.newest_first(), terms)) == 20
        assert counted["_searchable_texts"] == expected
    (first, *others) = await store.newest_first()
    await store.mark_read(first.key)
    await store.delete(others[0].key)
    searcher.search(await store.newest_first(), ())
    with counted_calls() as counted:
        assert len(searcher.search(await store.newest_first(), terms)) == 19
    assert counted["_searchable_texts"] == 0


opened: list[str] = []
watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event == "open":
        opened.append(str(arguments[0]))


@pytest.fixture
def files_opened() -> Iterator[list[str]]:
    """The files that are opened during the test. A hook cannot be removed, so it is switched off."""
    global watching
    if not hasattr(_audit, "added"):
        sys.addaudithook(_audit)
        _audit.added = True  # type: ignore[attr-defined]
    opened.clear()
    watching = True
    yield opened
    watching = False


async def test_a_folder_opens_only_what_has_changed(tmp_path: Path, files_opened: list[str]) -> None:
    folder, other = Folder(tmp_path), Folder(tmp_path)
    events: list[MessageEvent] = []
    await record(events.append, 30)

    def look() -> tuple[Sequence[Entry], list[str]]:
        files_opened.clear()
        entries = folder.entries()
        return entries, [Path(name).name for name in files_opened if name.startswith(str(tmp_path))]

    def use() -> None:
        for event in events:
            other.write(event)
        first, names = look()
        assert Counter(names) == {"changes": 1, "steps": 30, "message.json": 30}
        assert look() == (first, ["changes"])
        assert other.mark_read(first[3].key, read=True)
        second, names = look()
        assert names == ["changes", "steps"]
        assert [entry.read for entry in second].index(True) == 3

    await asyncio.to_thread(use)
