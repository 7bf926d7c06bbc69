"""Report whether mail works, from what this process knows and its stores say: for load balancers and monitors."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from openviper.core.email.backends.base import EmailBackend
from openviper.core.email.backends.failover import FailoverBackend
from openviper.core.email.delivery.current import current_mailer
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.outbox import Outbox
from openviper.core.email.errors import EmailError, QueueUnavailable
from openviper.core.email.queue import JobQueue, QueueService, queue_of
from openviper.core.email.settings import DEFAULT_MAILER
from openviper.exceptions import ImproperlyConfigured, MissingDependency
from openviper.loops import PerLoop

__all__ = ["Health", "HealthCheck", "HealthProblem", "health"]

_FRESH = 5.0  # seconds for which a result is given again
_LIMIT = 2.0  # seconds for each thing that is asked
_LONGEST_WAIT = 900.0  # seconds that mail which may be sent can wait in a store before it is a problem

HealthStatus = Literal["ok", "degraded", "failing"]


class HealthProblem(NamedTuple):
    """A problem that keeps mail from working as set up; ``text`` is for people and names no host or address."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """Whether mail works.

    ``status``: "ok"; "degraded" if mail is late or held back, but none is lost; "failing" if sends raise. ``stats`` are
    JSON values: counts of connections, dispatcher, queue and outbox, without hosts and addresses.
    """

    status: HealthStatus
    problems: tuple[HealthProblem, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self, *, details: bool = True) -> dict[str, Any]:
        """Return JSON values: only ``status``, or with ``details`` the problems and stats as well."""
        if not details:
            return {"status": self.status}
        return {"status": self.status, "problems": [each._asdict() for each in self.problems], **self.stats}


async def health() -> Health:
    """Return whether mail works for the current mailer; the result is computed at most every five seconds.

    A mail server that works is not contacted: the result of its last connection counts. A server that did not answer is
    tried again. The broker and the outbox are queried. A broken set-up is reported as "failing" and raises no
    error.
    """
    known = _broken.get()
    if known is not None and time.monotonic() - known[0] < _FRESH:
        return known[1]
    try:
        mailer = await current_mailer()
    except (ImproperlyConfigured, MissingDependency):
        text = "a setting is invalid, or a library is missing: `viperctl email config` says which"
        return _without_mailer("failing", "settings", text)
    except EmailError:
        return _without_mailer("degraded", "backend", "the backend cannot be opened")
    check = _checks.get(mailer)
    if check is None:
        check = _checks[mailer] = HealthCheck()
    return await check.result(mailer)


class HealthCheck:
    """The last result for one mailer, which all who ask meanwhile share."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._last: Health | None = None
        self._at = 0.0
        self._has_tables = False

    async def result(self, mailer: Mailer) -> Health:
        """Return the last result while it is fresh, or a new one."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._at >= _FRESH:
                self._last = await self._compute(mailer)
                self._at = time.monotonic()
            return self._last

    async def _compute(self, mailer: Mailer) -> Health:
        found = _Findings()
        transport = mailer.own_transport
        queue = None if mailer.settings.use_background_worker is False else mailer.transport.queue
        await asyncio.gather(_look_at_servers(mailer, found), _look_at_queue(mailer, queue, found))
        has_tables = mailer.outbox is None or await self._look_at_outbox(mailer.outbox, found)
        dispatcher = mailer.dispatcher
        found.stats["dispatcher"] = {"messages": dispatcher.pending, "full": dispatcher.full}
        if dispatcher.full:
            found.add("dispatcher", "the dispatcher is full: new mail from requests is delivered before the response")
        if transport.journal is not None:
            found.stats["journal"] = {"waiting": transport.journal.waiting}
            if transport.journal.failing:
                found.add("journal", "answers are not written to the journal: `viperctl email check` says why")
        pauses = transport.pause.find_all() if transport.pause is not None and transport.pause.on else ()
        found.stats["paused"] = [{"mailer": pause.mailer, "until": pause.until} for pause in pauses]
        for pause in pauses:
            found.add("paused", f"sending is paused: {pause.describe()}, {pause.describe_end()}")
        status: HealthStatus = "failing" if not has_tables else "degraded" if found.problems else "ok"
        return Health(status, tuple(found.problems), found.stats)

    async def _look_at_outbox(self, outbox: Outbox, found: "_Findings") -> bool:
        """Count what the outbox holds; False if it lacks its tables."""
        store = outbox.keeper.store
        try:
            async with asyncio.timeout(_LIMIT):
                if not self._has_tables:
                    from openviper.db.outbox.tables import missing_tables  # with the setting only

                    if missing := await missing_tables(store.engine):
                        found.add("outbox", f"the outbox lacks {', '.join(missing)}: transactions with mail fail")
                        return False
                    self._has_tables = True
                stats, relays = await store.stats(), await store.relays()
        except Exception as error:  # noqa: BLE001 - of any driver, whose text may name the host
            self._has_tables = False  # perhaps they were dropped, which the next look shows
            found.add("outbox", f"the outbox's database does not answer ({type(error).__name__})")
            return True
        found.stats["outbox"] = {"relays": relays, **stats._asdict()}
        if not relays and (stats.waiting or stats.in_hand):
            found.add("relay", "mail waits in the outbox, and no relay runs")
        if stats.overdue is not None and stats.overdue > _LONGEST_WAIT:
            found.add("queue_age", f"mail has waited in the outbox for {stats.overdue:.0f} s")
        return True


class _Findings:
    """The problems and stats found so far."""

    def __init__(self) -> None:
        self.problems: list[HealthProblem] = []
        self.stats: dict[str, Any] = {
            "mailers": {},
            "dispatcher": None,
            "queue": None,
            "outbox": None,
            "journal": None,
            "paused": [],
        }

    def add(self, name: str, text: str) -> None:
        self.problems.append(HealthProblem(name, text))


async def _look_at_servers(mailer: Mailer, found: _Findings) -> None:
    """Try again the servers that did not answer, and note those that still do not, and the failovers in use."""
    transport = mailer.own_transport
    await asyncio.gather(
        *[_reconnect(backend) for backend in transport.backends.values() if backend.reachable is False]
    )
    for name, backend in transport.backends.items():
        stats = backend.stats
        found.stats["mailers"][name] = {
            "reachable": backend.reachable,
            "connections": None if stats is None else asdict(stats),
        }
        if backend.reachable is False:
            found.add("mail_server", f"the server of the mailer {name} does not answer")
    for name, route in transport.routes.items():
        if isinstance(route, FailoverBackend) and name in route.down:
            found.add("failover", f"mail of the mailer {name} goes through its failover")


async def _reconnect(backend: EmailBackend) -> None:
    with suppress(EmailError, TimeoutError):  # it is still unreachable, then
        async with asyncio.timeout(_LIMIT):
            await backend.reconnect()


async def _look_at_queue(mailer: Mailer, queue: JobQueue | None, found: _Findings) -> None:
    """Ask the broker, and count its workers and mail."""
    if queue is None:
        return
    stats: dict[str, Any] = {"answers": await queue.answers()}
    found.stats["queue"] = stats
    if not stats["answers"]:
        found.add("broker", "the broker does not answer: mail is sent without the queue")
        return
    names = (DEFAULT_MAILER, *mailer.settings.mailers)
    try:
        async with asyncio.timeout(_LIMIT):
            workers = {name: await asyncio.to_thread(queue.consumers, queue_of(name)) for name in names}
            stats["workers"] = workers
            if isinstance(queue, QueueService):
                stored = await asyncio.to_thread(queue.store.stats)
                stats |= {name: getattr(stored, name) for name in ("waiting", "later", "failed", "waiting_for")}
    except (QueueUnavailable, TimeoutError):
        found.add("broker", "the broker does not say how much mail it holds")
        return
    for name, count in workers.items():
        if not count:
            found.add("workers", f"no worker consumes the queue of the mailer {name}")
    if (stats.get("waiting_for") or 0) > _LONGEST_WAIT:
        found.add("queue_age", f"mail has waited in the queue for {stats['waiting_for']:.0f} s")


def _without_mailer(status: HealthStatus, name: str, text: str) -> Health:
    found = Health(status, (HealthProblem(name, text),))
    _broken.set((time.monotonic(), found))
    return found


_checks: "WeakKeyDictionary[Mailer, HealthCheck]" = WeakKeyDictionary()
_broken: PerLoop[tuple[float, Health]] = PerLoop()
