"""Count sent mail for Prometheus (extra ``metrics``): a listener for the settings, and gauges of what is held."""

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openviper.conf.imports import require
from openviper.core.email import MessageEvent
from openviper.core.email.delivery.stats import gather_stats
from openviper.core.email.queue import stored_mail
from openviper.exceptions import OpenViperError
from openviper.loops import after_fork_in_child

require("prometheus_client", extra="metrics", purpose="openviper.metrics")

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, make_asgi_app  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

if TYPE_CHECKING:
    from openviper.core.email.queue.job import QueueStats

__all__ = ["metrics_app", "observe", "registry", "sample", "stop_sampling"]

logger = logging.getLogger("openviper.email")

_EVERY = 5.0  # seconds between two samples of what the process holds
_QUEUE_ONE_IN = 3  # one sample of so many asks the broker or the database, too
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_ATTEMPT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_AGE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)

_events = Counter("openviper_email_events", "Events of messages, by kind.", ["event", "mailer", "mode"])
_attempts = Histogram(
    "openviper_email_attempt_seconds",
    "Duration of delivery attempts.",
    ["mailer", "mode", "outcome"],
    buckets=_ATTEMPT,
)
_replies = Counter("openviper_email_replies", "Attempts by the server's last reply code.", ["mailer", "code"])
_recipients = Counter("openviper_email_recipients", "Recipients that a server accepted.", ["mailer", "mode"])
_ages = Histogram(
    "openviper_email_delivery_seconds",
    "Time from the call, or from the commit or send_at, to the delivery.",
    ["mailer", "mode"],
    buckets=_AGE,
)


def _gauge(name: str, text: str, labels: Iterable[str] = (), *, of_process: bool = True) -> Gauge:
    # What all processes see alike is not added up; the values of processes that have ended do not count.
    mode: Any = "livesum" if of_process else "livemostrecent"
    return Gauge(f"openviper_email_{name}", text, labels, multiprocess_mode=mode)


_connections = _gauge("pool_connections", "Connections to the mail server.", ["mailer", "state"])
_waiting = _gauge("pool_waiting", "Senders that wait for a connection.", ["mailer"])
_held = _gauge("dispatcher_messages", "Messages that the dispatcher holds in memory.")
_held_bytes = _gauge("dispatcher_bytes", "Bytes of content of these messages.")
_up = _gauge("queue_up", "1 if the broker or outbox answers, 0 if not.", of_process=False)
_queued = _gauge("queue_messages", "Messages in the queue or outbox.", ["state"], of_process=False)
_queued_by = _gauge("queue_waiting", "Messages that could be sent now, by queue.", ["queue"], of_process=False)
_oldest = _gauge("queue_oldest_seconds", "Age of the oldest unsent message; 0 if there is none.", of_process=False)
_delay = _gauge("queue_waiting_seconds", "Seconds for which mail that could be sent has waited.", of_process=False)
_workers = _gauge("queue_workers", "Workers that consume a queue, or relays.", ["queue"], of_process=False)


def observe(event: MessageEvent) -> None:
    """Count an event: ``EMAIL["listeners"] = ["openviper.metrics.observe"]``. The first call starts the sampling."""
    _sampler.start()
    mode = "" if event.mode is None else str(event.mode)
    _events.labels(event.kind, event.mailer, mode).inc()
    outcome = _outcome(event)
    if outcome is None:
        return
    via = event.via or event.mailer
    _attempts.labels(via, mode, outcome).observe(event.seconds or 0.0)
    if event.code is not None:
        _replies.labels(via, str(event.code)).inc()
    if event.kind == "delivered":
        recipients = event.message.envelope.recipients
        _recipients.labels(via, mode).inc(sum(address not in event.refused for address in recipients))
        since = event.at - (event.seconds or 0.0) if event.since is None else event.since
        _ages.labels(event.mailer, mode).observe(max(0.0, event.at - since))


def _outcome(event: MessageEvent) -> str | None:
    """Return how an attempt has ended; None for an event of none, or of one that another event has counted."""
    if event.seconds is None:
        return None
    if event.kind == "delivered":
        return "partial" if set(event.refused).intersection(event.message.envelope.recipients) else "delivered"
    # With a server named, it has accepted the message for some, which an event has said before.
    return event.kind if event.kind in ("retrying", "failed") and event.via is None else None


def registry() -> CollectorRegistry:
    """Return this process's registry, or one that covers all processes if ``PROMETHEUS_MULTIPROC_DIR`` is set."""
    if _FOLDER not in os.environ:
        return REGISTRY
    found = CollectorRegistry()
    _AllProcesses(found)
    return found


class _AllProcesses(MultiProcessCollector):
    """Adds up what all processes have written, without the gauges of those that have ended."""

    def __init__(self, target: CollectorRegistry) -> None:
        super().__init__(target)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        _forget_ended_processes()
        found: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
        return found


def metrics_app() -> Any:
    """Return an ASGI application that serves the metrics, to mount at ``/metrics``."""
    _sampler.start()
    return make_asgi_app(registry())


def sample(*, queue: bool = True) -> None:
    """Set the gauges to the current values, as a thread does every 5 seconds (every 15 for the queue's).

    Do not call it on an event loop: it blocks until the event loops and, with ``queue``, the broker or database have
    answered, for a few seconds at most.
    """
    with _sampler.lock:
        _sample_process()
        if queue:
            _sample_queue()


def stop_sampling() -> None:
    """End the thread that sets the gauges; the next event starts it again. Blocks while the gauges are being set."""
    _sampler.stop()


_mailers: set[str] = set()
_queues: set[str] = set()


def _sample_process() -> None:
    stats = gather_stats()
    _held.set(sum(each.messages for each in stats))
    _held_bytes.set(sum(each.size for each in stats))
    pools = [(mailer, pool) for each in stats for mailer, pool in each.pools.items()]
    _mailers.update(mailer for mailer, _ in pools)
    for name in _mailers:
        own = [pool for mailer, pool in pools if mailer == name]
        idle = sum(pool.idle for pool in own)
        _connections.labels(name, "idle").set(idle)
        _connections.labels(name, "busy").set(sum(pool.open for pool in own) - idle)
        _waiting.labels(name).set(sum(pool.waiting for pool in own))


def _sample_queue() -> None:
    try:
        stored = stored_mail()
        if stored is None:
            return
        stats, queues = stored.store.stats(), stored.store.queues()
        single: Mapping[str, QueueStats] = {queues[0]: stats}
        if len(queues) > 1:
            single = {queue: stored.store.stats(queue) for queue in queues}
    except OpenViperError:
        _up.set(0)
        return
    _up.set(1)
    _queued.labels("waiting").set(stats.waiting)
    _queued.labels("failed").set(stats.failed)
    if stats.later is not None:
        _queued.labels("later").set(stats.later)
    _oldest.set(stats.oldest or 0.0)
    _delay.set(stats.waiting_for or 0.0)
    _queues.update(single)
    for queue in _queues:
        found = single.get(queue)
        _queued_by.labels(queue).set(0 if found is None else found.waiting)
        _workers.labels(queue).set(0 if found is None else found.consumers)


def _forget_ended_processes() -> None:
    """Remove the gauges of processes that have ended: not every server tells of their end. Linux only."""
    if not Path("/proc/self").exists():
        return
    for process in {path.stem.rpartition("_")[2] for path in Path(os.environ[_FOLDER]).glob("gauge_live*_*.db")}:
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            mark_process_dead(int(process))  # type: ignore[no-untyped-call]


class _Sampler:
    """Samples in a thread, one in each process that has an event or serves the metrics."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._starting = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if it does not run."""
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None:
                self._end = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._end,), name="openviper-metrics", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """End the thread, after the sample that it may be at."""
        thread, self._thread = self._thread, None
        self._end.set()
        if thread is not None:
            thread.join()

    def _run(self, end: threading.Event) -> None:
        for number in count():
            if end.is_set():
                return
            try:
                sample(queue=number % _QUEUE_ONE_IN == 0)
            except Exception:  # of a client library; the next sample may succeed
                logger.debug("metrics were not sampled", exc_info=True)
            end.wait(_EVERY)


_sampler = _Sampler()
after_fork_in_child(_sampler.__init__)  # type: ignore[misc] # the child has no thread, and may have a locked lock
