"""The results of a send, and the events of a message for those who listen: inbox, tests, metrics."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from enum import StrEnum
from inspect import isawaitable, iscoroutine
from typing import Any, Literal, NamedTuple, Never

from openviper.core.email.errors import EmailError, Refusal
from openviper.loops import PerLoop, at_loop_end
from openviper.text import counted, function_name

__all__ = [
    "NOTHING",
    "Circumstances",
    "DeliveryMode",
    "DeliveryReport",
    "EventKind",
    "Listener",
    "MessageEvent",
    "Receipt",
    "drain_listeners",
    "listening",
    "publish",
    "subscribe",
]

logger = logging.getLogger("openviper.email")

_MOST_TASKS, _MOST_WAITING = 100, 10_000  # async listeners that run, and events that wait for one of them to end
_DRAIN_LIMIT = 5.0  # seconds, where no setting says otherwise


class DeliveryMode(StrEnum):
    """How a message is delivered."""

    INLINE = "inline"  # delivered before the call returns
    DEFERRED = "deferred"  # delivered by the dispatcher when the response has ended
    QUEUED = "queued"  # accepted by the broker, delivered by a worker
    HELD = "held"  # waits for its transaction to commit, then takes one of the other modes


class _Nothing(Mapping[str, Any]):
    """An empty mapping that cannot be filled, and survives pickle."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Never:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0  # immutable, which dataclasses ask of a default

    def __repr__(self) -> str:
        return "{}"


NOTHING: Mapping[str, Any] = _Nothing()
"""The default of mappings in values that are shared: one for all."""


# These two are named tuples, because every send makes both, and a frozen dataclass sets each field by a call.
class DeliveryReport(NamedTuple):
    """Result of a delivery: the accepted addresses, the refused ones with the server's reply, and its last reply.

    Recipients in ``refused`` whose ``Refusal.uncertain`` is True may have received the message. Addresses in
    ``suppressed`` were not mailed because of ``EMAIL["suppress"]``. ``via`` is the mailer that a failover used; None
    without a failover. ``dsn``: True if the server was asked for the notices given in ``dsn=``, False if it does not
    offer them, None if none were requested. ``protocol``: the SMTP dialogue in which recipients were refused, if
    ``EMAIL["protocol_log"]`` is on.
    """

    accepted: tuple[str, ...]
    refused: Mapping[str, Refusal] = NOTHING
    response: str = ""
    suppressed: tuple[str, ...] = ()
    via: str | None = None
    dsn: bool | None = None
    protocol: str | None = None

    @property
    def outcome(self) -> str:
        """Return the server's reply, who was refused and why, and who may have received the message."""
        text = self.response
        for uncertain, words in ((False, "refused"), (True, "perhaps delivered")):
            replies = [f"{who} ({why})" for who, why in self.refused.items() if why.uncertain is uncertain]
            if replies:
                text += f"; {words}: {', '.join(replies)}"
        return (
            text
            if self.dsn is not False
            else f"{text}; without delivery notices, because the server does not offer DSN"
        )


class Receipt(NamedTuple):
    """Result of a send; false if the delivery failed silently, with the reason in ``error``.

    ``accepted``, ``refused`` (each address with its :class:`Refusal`, which may be uncertain) and ``suppressed``
    (addresses not mailed because of ``EMAIL["suppress"]``) are known for inline messages only. ``index`` is the
    message's position in a ``send_many`` run, counted from 0; in such a run an invalid message has ``""`` as its
    ``message_id``.

    ``duplicate``: True if nothing was sent because an earlier send had the same ``key``, or a queued message had the
    same Message-ID; the other fields then describe that send. None if this is not known yet, because the message is
    held or the key store did not answer. ``in_flight``: True if the earlier send has not ended; such a receipt is false
    as well, because the outcome is unknown.

    ``dsn``: True if the server was asked for the notices given in ``dsn=``, False if it does not offer them (RFC 3461);
    None without ``dsn=`` and for messages not delivered inline.
    """

    message_id: str
    mode: DeliveryMode
    accepted: tuple[str, ...] = ()
    refused: Mapping[str, Refusal] = NOTHING
    response: str = ""
    error: EmailError | None = None
    index: int | None = None  # type: ignore[assignment] # in the place of tuple.index, which no receipt needs
    suppressed: tuple[str, ...] = ()
    cancelled: str | None = None
    duplicate: bool | None = False
    in_flight: bool = False
    dsn: bool | None = None

    @property
    def outcome(self) -> Literal["delivered", "accepted", "suppressed", "cancelled", "failed", "in_flight"]:
        """Return the state of the message when the call returned.

        "accepted": it is deferred, queued or held. "suppressed": nobody was mailed, because all recipients are
        suppressed. "cancelled": ``EMAIL["before_send"]`` cancelled it, with the reason in ``cancelled``. "in_flight":
        an earlier send with the same key has not ended yet.
        """
        if self.cancelled is not None:
            return "cancelled"
        if self.error is not None:
            return "failed"
        if self.in_flight:
            return "in_flight"
        if self.suppressed and not self.accepted and not self.refused:
            return "suppressed"
        return "delivered" if self.mode is DeliveryMode.INLINE else "accepted"

    def __bool__(self) -> bool:
        return self.error is None and not self.in_flight


EventKind = Literal[
    "held",  # waits for its transaction to commit
    "deferred",  # waits for the response to end
    "queued",  # the broker has accepted it
    "sending",  # an attempt begins
    "delivered",  # the server accepted it for every recipient, or for some: then refused names the others
    "retrying",  # an attempt failed; another one follows
    "failed",  # no further attempt is made
    "paused",  # sending is paused; it waits for the end of the pause, or "failed" follows because nobody keeps it
    "suppressed",  # recipients were left out, as EMAIL["suppress"] says; if all of them were, nothing follows
    "redirected",  # a copy goes to EMAIL["redirect_to"]; detail says for whom it was
    "cancelled",  # EMAIL["before_send"] cancelled it; detail is the reason
    "duplicate",  # not sent: an earlier send had its key, or a queued message its Message-ID
    "discarded",  # its transaction was rolled back, or discard_on_error dropped it
]


class Circumstances(NamedTuple):
    """How, at which attempt and when something happened to a message; see :class:`MessageEvent`.

    ``at`` None: now.
    """

    mode: DeliveryMode | None = None
    attempt: int | None = None
    seconds: float | None = None
    code: int | None = None
    via: str | None = None
    at: float | None = None
    since: float | None = None


_UNKNOWN = Circumstances()


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """One step in the life of a message.

    ``message`` is the ``OutgoingMessage``, read-only with everything in it, so that a listener can show it; ``detail``
    is the server's reply or the reason, without secrets; ``refused`` are the recipients who did not receive the message
    although others did; ``at`` is Unix time in seconds.

    ``mode`` is the delivery mode in which the message was accepted; None if none was chosen. Five fields describe an
    attempt: ``attempt`` is its number, from 1; ``seconds`` is how long it took; ``code`` is the server's last reply
    code; ``via`` is the mailer whose server took the message (``mailer`` unless a failover used another one); ``since``
    is the Unix time from which the message could be sent: the time of the send, or of the commit or ``send_at`` that it
    waited for. A field that does not apply is None; so is ``since`` for an inline message, whose attempt begins at
    once.
    """

    kind: EventKind
    message_id: str
    message: Any
    detail: str = ""
    refused: tuple[str, ...] = ()
    at: float = field(default_factory=time.time)
    mode: DeliveryMode | None = None
    attempt: int | None = None
    seconds: float | None = None
    code: int | None = None
    via: str | None = None
    since: float | None = None

    @property
    def mailer(self) -> str:
        """Return the name of the mailer that was asked for; "default" for the one that ``EMAIL`` itself describes."""
        name: str = self.message.mailer
        return name

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the message's tags."""
        return tuple(self.message.prepared.extra.get("tags", ()))

    @property
    def ref(self) -> str | None:
        """Return the application's own reference; None without one."""
        ref: str | None = self.message.prepared.extra.get("ref")
        return ref

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the message's metadata."""
        metadata: Mapping[str, str] = self.message.prepared.extra.get("metadata", NOTHING)
        return metadata

    @property
    def sensitive(self) -> bool:
        """True if the message was sent with ``sensitive=True``; only listeners that asked for its content get it."""
        return bool(self.message.prepared.must.get("sensitive"))

    @property
    def stream(self) -> str | None:
        """Return the message's stream; None without one."""
        stream: str | None = self.message.prepared.must.get("stream")
        return stream

    @property
    def key(self) -> str | None:
        """Return the message's idempotency key; None without one."""
        given = self.message.prepared.must.get("key")
        name: str | None = given.get("name") if isinstance(given, Mapping) else None
        return name


Listener = Callable[[MessageEvent], Awaitable[None] | None]
_listeners: list[Listener] = []
_trusted: list[Listener] = []  # get the content of sensitive messages, too


def subscribe(listener: Listener, *, sensitive: bool = False) -> Callable[[], None]:
    """Call ``listener`` for every event of this process; return a function that ends the subscription.

    With ``sensitive`` True, the listener gets messages that were sent with ``sensitive=True`` unchanged; with False, it
    gets them with a notice in place of their bodies and without attachments.

    A plain function runs where the event happens (usually on the event loop) and must not block; an async one runs in a
    separate task. Exceptions are logged and not raised: a listener never changes what happens to mail. For listeners
    that every process calls, workers included, use ``EMAIL["listeners"]``.

    Raises:
        TypeError: ``listener`` cannot be called.
    """
    given: Any = listener
    if not callable(given):
        raise TypeError(
            f"subscribe(): the listener is a {type(given).__name__}; give a function that takes one MessageEvent"
        )
    kept = _trusted if sensitive else _listeners
    kept.append(listener)

    def unsubscribe() -> None:
        if listener in kept:
            kept.remove(listener)

    return unsubscribe


def listening() -> bool:
    """True when there is a listener, which costs an event for each step of a message."""
    return bool(_listeners or _trusted)


def publish(
    kind: EventKind,
    message: Any,
    detail: str = "",
    *,
    refused: tuple[str, ...] = (),
    circumstances: Circumstances = _UNKNOWN,
    listeners: Sequence[Listener] = (),
    redact: Callable[[Any], Any] | None = None,
) -> None:
    """Call the listeners with an event of ``message``; ``listeners`` are called besides those that subscribed.

    ``redact`` returns a sensitive message as listeners may see it who did not subscribe to such ones; None for others.
    """
    if not _listeners and not _trusted and not listeners:
        return
    event = MessageEvent(
        kind=kind,
        message_id=message.message_id,
        message=message,
        detail=detail,
        refused=refused,
        at=time.time() if circumstances.at is None else circumstances.at,
        mode=circumstances.mode,
        attempt=circumstances.attempt,
        seconds=circumstances.seconds,
        code=circumstances.code,
        via=circumstances.via,
        since=circumstances.since,
    )
    if _trusted:
        _call(_trusted, event)
    if _listeners or listeners:
        _call((*_listeners, *listeners), event if redact is None else replace(event, message=redact(message)))


def _call(listeners: Iterable[Listener], event: MessageEvent) -> None:
    for listener in tuple(listeners):
        try:
            result = listener(event)
        except Exception:  # a broken listener must not stop mail
            logger.exception(
                "the listener %s failed on the event %r of message %s",
                function_name(listener),
                event.kind,
                event.message_id,
            )
        else:
            if result is not None and isawaitable(result):
                _run(result, event)


def _run(result: Awaitable[None], event: MessageEvent) -> None:
    try:
        found = _running.get()
    except RuntimeError:
        _close(result)
        logger.error("an async listener needs an event loop for the event %r, and none runs here", event.kind)
        return
    if found is None:
        found = _AsyncListeners()
        _running.set(found)
        at_loop_end(found.drain)
    found.add(result, event)


async def drain_listeners(timeout: float) -> None:
    """Wait up to ``timeout`` seconds for async listeners that are still busy with events of this event loop."""
    found = _running.get()
    if found is not None:
        await found.drain(timeout)


class _AsyncListeners:
    """Awaits async listeners in tasks, at most ``_MOST_TASKS``; further events wait, up to ``_MOST_WAITING``."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Awaitable[None], MessageEvent]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dropped = 0

    def add(self, result: Awaitable[None], event: MessageEvent) -> None:
        """Have ``result`` awaited, now or when a task is free."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append((result, event))
            self._start()
            return
        _close(result)
        if not self._dropped:
            logger.warning("async listeners are too slow: %d events wait, further ones are dropped", _MOST_WAITING)
        self._dropped += 1

    async def drain(self, timeout: float = _DRAIN_LIMIT) -> None:
        """Wait for all, up to ``timeout`` seconds, and drop the others."""
        deadline = asyncio.get_running_loop().time() + timeout
        for _ in self._waiting:
            self._start()  # the end of asyncio.run cancels the tasks before this is called
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(tuple(self._tasks), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._dropped += len(self._waiting)
        while self._waiting:
            _close(self._waiting.popleft()[0])
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._report()

    def _start(self) -> None:
        if len(self._tasks) < _MOST_TASKS:
            # An empty context: the task outlives the request and must not see its outbox or transaction.
            task = asyncio.get_running_loop().create_task(self._work(), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard, context=Context())

    async def _work(self) -> None:
        while self._waiting:
            result, event = self._waiting.popleft()
            try:
                await result
            except asyncio.CancelledError:
                self._dropped += 1
                raise
            except Exception:  # a broken listener must not stop mail
                logger.exception("a listener failed on the event %r of message %s", event.kind, event.message_id)
        self._report()

    def _report(self) -> None:
        if self._dropped and not self._waiting:
            logger.warning("async listeners did not get %s", counted(self._dropped, "event"))
            self._dropped = 0


def _close(result: Awaitable[None]) -> None:
    """End a coroutine that is not awaited, which would be a warning otherwise."""
    if iscoroutine(result):
        result.close()


_running: PerLoop[_AsyncListeners] = PerLoop()
