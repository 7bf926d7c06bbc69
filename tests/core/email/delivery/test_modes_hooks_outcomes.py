"""Each delivery mode x each ``before_send`` x each outcome, in the web process and in a worker on either broker.

Listeners that raise or never end are there all the time, and harm nothing. The rows are in ``OUTCOMES`` and ``HOOKS``,
what each mode adds to them is in ``MODES``; the events of a row are those of the web process and then the worker's.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.broker_server import BrokerServer
from support.brokers import rabbitmq_server, redis_server, until_available
from support.brokers import usual_broker as broker
from support.patience import PATIENCE
from support.smtpd import ReceivedMessage, SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import (
    AttachmentData,
    Cancel,
    EmailMessageData,
    MessageEvent,
    Receipt,
    send_email_sync,
    send_many,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue import close_queue, enqueue_email_job
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction

__all__ = ["broker", "rabbitmq_server", "redis_server"]

TEAM = "team@staging.example"


# The rows: what the mail server does, and what follows


@dataclass(frozen=True)
class Outcome:
    """Local parts of the recipients, whose first word says what happens to them; who receives it in the end.

    ``inline`` is how an inline send ends: the receipt's outcome, or the name of the error. ``once`` are the events of
    an attempt that is not repeated, ``retried`` those where a temporary failure is repeated.
    """

    people: tuple[str, ...]
    received: tuple[str, ...]
    inline: str
    once: tuple[str, ...]
    retried: tuple[str, ...] = ()


OUTCOMES = {
    "delivered": Outcome(("ok",), ("ok",), "delivered", ("sending", "delivered")),
    "refused": Outcome(("refused",), (), "RecipientsRefused", ("sending", "failed")),
    "temporary": Outcome(
        ("later",),
        ("later",),
        "RecipientsRefused",
        ("sending", "failed"),
        ("sending", "retrying", "sending", "delivered"),
    ),
    "uncertain": Outcome(
        ("lost",), ("lost",), "ConnectionFailed", ("sending", "failed"), ("sending", "retrying", "sending", "delivered")
    ),
    "all suppressed": Outcome(("gone",), (), "suppressed", ("sending", "suppressed")),
    "partly suppressed": Outcome(("gone", "ok"), ("ok",), "delivered", ("sending", "suppressed", "delivered")),
}
REDIRECTED = {"redirected": Outcome(("ok",), (TEAM,), "delivered", ("sending", "redirected", "delivered"))}


def keep(data: EmailMessageData) -> EmailMessageData:
    return data


def edit(data: EmailMessageData) -> EmailMessageData:
    """Mend the recipients, add a footer to the HTML, and a file."""
    assert isinstance(data.recipients, list)
    data.recipients = [str(each).removeprefix("wrong-") for each in data.recipients]
    data.html = f"{data.html}<p>The shop, 1 High Street</p>"
    data.attachments.append(AttachmentData("terms.txt", b"terms"))
    return data


def stop(data: EmailMessageData) -> Cancel:
    return Cancel("on holiday")


def fail(data: EmailMessageData) -> EmailMessageData:
    raise LookupError("no such customer")


def forget(data: EmailMessageData) -> None:
    return None


HOOKS: dict[str, tuple[Callable[[EmailMessageData], object], str | None]] = {
    "keeps": (keep, None),
    "edits": (edit, None),
    "cancels": (stop, "cancelled"),
    "raises": (fail, "LookupError"),
    "returns None": (forget, "TypeError"),
}
"""The hook, and how every send ends with it, whatever the outcome would be; None: as the outcome says."""

CALLS: Counter[str] = Counter()


def plain(data: EmailMessageData) -> object:
    """Call the hook that the tag names, and count the call."""
    CALLS[data.subject] += 1
    return HOOKS[data.tags[0]][0](data)


async def waiting(data: EmailMessageData) -> object:
    await asyncio.sleep(0)
    return plain(data)


SHAPES: dict[str, object] = {
    "plain": plain,
    "async": waiting,
    "list": [keep, waiting],
    "path": f"{__name__}.plain",
}


# The modes


async def inline(message: dict[str, Any]) -> Receipt:
    return await submit_email(**message, background=False)


async def by_the_sync_twin(message: dict[str, Any]) -> bool:
    return await asyncio.to_thread(lambda: send_email_sync(**message))


async def deferred(message: dict[str, Any]) -> Receipt:
    outbox = RequestOutbox()
    with collecting(outbox):
        receipt = await submit_email(**message)
    outbox.flush()
    return receipt


async def held(message: dict[str, Any]) -> Receipt:
    async with transaction():
        return await submit_email(**message)


async def many(message: dict[str, Any], **options: Any) -> Receipt:
    (receipt,) = [receipt async for receipt in send_many([message], **options)]
    return receipt


async def many_pipelined(message: dict[str, Any]) -> Receipt:
    return await many(message, pipeline=True)


async def many_as_data(message: dict[str, Any]) -> Receipt:
    return await many(as_data(message))  # type: ignore[arg-type]


async def queued(message: dict[str, Any]) -> Receipt:
    return await submit_email(**message, background=True)


async def bulk(message: dict[str, Any]) -> Receipt:
    return await many(message, background=True)


async def job(message: dict[str, Any]) -> Receipt:
    return await enqueue_email_job(as_data(message))


def as_data(message: Mapping[str, Any]) -> EmailMessageData:
    return EmailMessageData(**{**message, "attachments": [AttachmentData(*message["attachments"][0])]})


@dataclass(frozen=True)
class Mode:
    """How to send; what the web process publishes before any attempt; True if it retries."""

    send: Callable[[dict[str, Any]], Awaitable[Receipt | bool]]
    before: tuple[str, ...] = ()
    retries: bool = False


MODES = {
    "inline": Mode(inline),
    "sync twin": Mode(by_the_sync_twin),
    "send_many": Mode(many),
    "send_many pipelined": Mode(many_pipelined),
    "send_many of data": Mode(many_as_data),
    "deferred": Mode(deferred, ("deferred",), retries=True),
    "held": Mode(held, ("held",), retries=True),
}
QUEUE_MODES = {
    "queued": Mode(queued, ("queued",), retries=True),
    "queued by the sync twin": Mode(by_the_sync_twin, ("queued",), retries=True),
    "held, then queued": Mode(held, ("held", "queued"), retries=True),
    "bulk": Mode(bulk, ("queued",), retries=True),
    "enqueue_email_job": Mode(job, ("queued",), retries=True),
}


# A row, played and looked at


@dataclass(frozen=True)
class Row:
    """One cell of the table; the subject of its message is its name."""

    mode: str
    how: Mode
    hook: str
    outcome: str
    row: Outcome

    @property
    def name(self) -> str:
        return f"{self.mode} / {self.hook} / {self.outcome}"

    def addresses(self, people: tuple[str, ...]) -> list[str]:
        where = self.name.replace(" / ", "_").replace(" ", "-").replace(",", "")
        return [each if "@" in each else f"{each}.{where}@example.com" for each in people]

    def prepare(self, server: SmtpServer) -> None:
        """Tell the mail server what to do with the recipients."""
        for address in self.addresses(self.row.people):
            if address.startswith("refused."):
                server.refuse(address, 550)
            elif address.startswith("later."):
                server.refuse(address, 451, nth=1)
            elif address.startswith("lost."):
                server.fault("body", "drop", nth=1, address=address)

    async def play(self) -> str:
        """Send the message; return the receipt's outcome, or the name of the error, raised or not."""
        wrong = "wrong-" if self.hook == "edits" else ""
        message: dict[str, Any] = {
            "recipients": [f"{wrong}{address}" for address in self.addresses(self.row.people)],
            "subject": self.name,
            "html": "<p>Hello</p>",
            "attachments": [("given.txt", b"given")],
            "tags": [self.hook],
        }
        if self.outcome == "redirected":
            message["bcc"] = [f"hidden.{self.how.send.__name__}@example.com"]
        try:
            receipt = await self.how.send(message)
        except Exception as error:  # noqa: BLE001 - whatever it is, the table says which
            return type(error).__name__
        if isinstance(receipt, bool):
            return "true" if receipt else "false"
        return receipt.outcome if receipt.error is None else type(receipt.error).__name__

    @property
    def expected_end(self) -> str:
        end = HOOKS[self.hook][1] or ("accepted" if self.how.before else self.row.inline)
        known_by_a_bool = self.how.send is by_the_sync_twin and not end[0].isupper()
        return "true" if known_by_a_bool else end

    @property
    def expected_events(self) -> list[str]:
        end = HOOKS[self.hook][1]
        if end is not None:
            return ["cancelled"] if end == "cancelled" else []
        return [*self.how.before, *((self.how.retries and self.row.retried) or self.row.once)]

    @property
    def expected_recipients(self) -> list[str]:
        """Those of the message that the server takes; none: it takes none."""
        unrepeated = self.row.retried and not self.how.retries
        return [] if HOOKS[self.hook][1] or unrepeated else self.addresses(self.row.received)

    def look_at(self, message: ReceivedMessage) -> None:
        """Check what the hook has changed."""
        edited = self.hook == "edits"
        parsed = message.parse()
        html, text = parsed.get_body(("html",)), parsed.get_body(("plain",))
        assert html is not None
        assert ("1 High Street" in html.get_content()) is edited
        if text is not None:  # EmailMessageData is sent as it is
            assert ("1 High Street" in text.get_content()) is edited, "derived after the hook"
        names = [part.get_filename() for part in parsed.iter_attachments()]
        assert names == (["given.txt", "terms.txt"] if edited else ["given.txt"])
        assert "wrong-" not in parsed["To"]
        assert b"hidden." not in message.content, "a Bcc recipient"


def rows(modes: Mapping[str, Mode], outcomes: Mapping[str, Outcome]) -> list[Row]:
    return [
        Row(mode, how, hook, outcome, row)
        for mode, how in modes.items()
        for hook in HOOKS
        for outcome, row in outcomes.items()
    ]


async def play(table: list[Row], server: SmtpServer) -> dict[str, str]:
    CALLS.clear()
    for row in table:
        row.prepare(server)
    # The sync twin's loops would block each other with their first imports, and pipelined messages share a connection,
    # whose end makes all of them uncertain.
    alone = [row for row in table if row.how.send in (by_the_sync_twin, many_pipelined)]
    together = [row for row in table if row not in alone]
    ends = [*await asyncio.gather(*[row.play() for row in together]), *[await row.play() for row in alone]]
    return {row.name: end for row, end in zip([*together, *alone], ends, strict=True)}


def check(table: list[Row], ends: Mapping[str, str], events: Mapping[str, list[str]], server: SmtpServer) -> None:
    """Compare the whole table at once, so that a failure shows every cell that is wrong."""
    arrived: dict[str, list[ReceivedMessage]] = defaultdict(list)
    for message in server.messages:
        arrived[str(message.parse()["Subject"])].append(message)
    found = {
        row.name: (ends[row.name], events.get(row.name, []), [each.recipients for each in arrived[row.name]])
        for row in table
    }
    assert found == {
        row.name: (
            row.expected_end,
            row.expected_events,
            [row.expected_recipients] if row.expected_recipients else [],
        )
        for row in table
    }
    assert Counter(row.name for row in table) == CALLS, "each hook is called once, by the sender"
    for row in table:
        for message in arrived[row.name]:
            row.look_at(message)


# The other functions of the settings, here and in the worker


def suppress(addresses: list[str], stream: str | None) -> list[str]:
    return [address for address in addresses if address.startswith("gone.")]


def described(event: MessageEvent) -> str:
    """The kind; each event says in which mode the message was accepted, but for one that was not."""
    return event.kind if event.mode or event.kind == "cancelled" else f"{event.kind} without its mode"


def raising(event: MessageEvent) -> None:
    raise LookupError("broken listener")


async def raising_later(event: MessageEvent) -> None:
    await asyncio.sleep(0)
    raise LookupError("broken listener")


async def hanging(event: MessageEvent) -> None:
    await asyncio.Event().wait()


IN_THE_WORKER = """
import asyncio, json

def suppress(addresses, stream):
    return [address for address in addresses if address.startswith("gone.")]

def refuse(data):
    raise RuntimeError("before_send is called in the worker")

def note(event):
    with open({log!r}, "a") as log:
        print(json.dumps([event.message.prepared.subject, event.kind if event.mode else "without its mode"]), file=log)

def raising(event):
    raise LookupError("broken listener")

async def raising_later(event):
    raise LookupError("broken listener")

async def hanging(event):
    await asyncio.Event().wait()
"""


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


def outcomes_of(redirect: bool) -> dict[str, Outcome]:
    return REDIRECTED if redirect else OUTCOMES


def settings(server: SmtpServer, *, redirect: bool, **more: Any) -> dict[str, Any]:
    given = {"default_sender": "shop@example.com", "retries": 1, "shutdown_timeout": 3, **more}
    return server.settings(**given, **({"redirect_to": [TEAM]} if redirect else {}))


@pytest.mark.parametrize("redirect", [False, True], ids=["", "redirected"])
@pytest.mark.parametrize(
    ("mode", "shape"),
    [*(("inline", shape) for shape in SHAPES), *((mode, "list") for mode in MODES if mode != "inline")],
)
async def test_in_the_web_process(server: SmtpServer, mode: str, shape: str, redirect: bool) -> None:
    events: dict[str, list[str]] = defaultdict(list)

    def note(event: MessageEvent) -> None:
        events[event.message.prepared.subject].append(described(event))

    listeners = [raising, raising_later, hanging, note]
    email = settings(server, redirect=redirect, before_send=SHAPES[shape], suppress=suppress, listeners=listeners)
    if mode == "sync twin":
        email["shutdown_timeout"] = 0.3  # which each send waits for the listener that never ends
    table = rows({mode: MODES[mode]}, outcomes_of(redirect))
    with override(EMAIL=email):
        if mode == "sync twin":  # each send has a loop and a mailer of its own
            ends = await play(table, server)
        else:
            made = Mailer(EmailSettings.from_settings())
            with using_mailer(made):
                ends = await play(table, server)
            await made.aclose()
    check(table, ends, events, server)


@pytest.mark.parametrize("redirect", [False, pytest.param(True, marks=pytest.mark.long)], ids=["", "redirected"])
async def test_with_a_worker(tmp_path: Path, broker: BrokerServer, server: SmtpServer, redirect: bool) -> None:
    events: dict[str, list[str]] = defaultdict(list)

    def note(event: MessageEvent) -> None:
        events[event.message.prepared.subject].append(described(event))

    log = tmp_path / "events.log"
    table = rows(QUEUE_MODES, outcomes_of(redirect))
    names = ("raising", "raising_later", "hanging", "note")
    email = settings(
        server,
        redirect=redirect,
        before_send="functions.refuse",
        suppress="functions.suppress",
        listeners=[f"functions.{name}" for name in names],
    )
    folder = write_project(tmp_path / "project", tasks=broker.tasks(), email=email)
    (folder / "functions.py").write_text(IN_THE_WORKER.format(log=str(log)))
    here = {"before_send": SHAPES["list"], "suppress": suppress, "listeners": [raising, raising_later, hanging, note]}
    here["shutdown_timeout"] = 0.3
    with override(TASKS=broker.tasks(), EMAIL={**email, **here}):
        await asyncio.to_thread(until_available)
        try:
            ends = await play(table, server)
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(folder, processes=2)
    await asyncio.to_thread(worker.start)
    sent = [row for row in table if HOOKS[row.hook][1] is None]
    expected = sum(len(row.expected_events) - len(row.how.before) for row in sent)

    def lines() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    async with asyncio.timeout(PATIENCE):
        while len(lines()) < expected:
            await asyncio.sleep(0.1)
    assert await asyncio.to_thread(worker.terminate) == 0
    for subject, kind in map(json.loads, lines()):
        events[subject].append(kind)
    check(table, ends, events, server)
