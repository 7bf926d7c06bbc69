"""What RabbitMQ was given and has delivered, by its own trace ("firehose"), for tests that have to explain copies."""

import re
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer

__all__ = ["RabbitmqTrace"]

_SUBJECT = re.compile(rb'"subject": ?"([^"]*)"')
_EXCHANGE = "amq.rabbitmq.trace"


class RabbitmqTrace:
    """Counts, by the subject of the mail, what was published to the queue of mail and delivered from it."""

    def __init__(self, server: RabbitmqServer) -> None:
        self._server = server
        self._published: Counter[str] = Counter()
        self._delayed: Counter[str] = Counter()
        self._redelivered: Counter[str] = Counter()
        self._redelivered_delayed: Counter[str] = Counter()
        self._history: dict[str, list[str]] = {}
        self._ready = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="rabbitmq-trace", daemon=True)

    def copies(self, subject: str) -> int:
        """Count how often the message was given to RabbitMQ, without moves from its queue of delayed messages."""
        published, delayed = self._published[subject], self._delayed[subject]
        return published + delayed - min(published, delayed)

    def redelivered(self, subject: str) -> int:
        """Count its deliveries to a worker after another one had died with it."""
        return self._redelivered[subject]

    def redelivered_delayed(self, subject: str) -> int:
        """Count its deliveries, while it was delayed, to a worker after another one had died with it."""
        return self._redelivered_delayed[subject]

    def history(self, subject: str) -> str:
        """Return what happened to the message, in order."""
        return ", ".join(self._history.get(subject, ()))

    def __enter__(self) -> Self:
        self._server.evaluate('rabbit_trace:start(<<"/">>)')
        self._thread.start()
        assert self._ready.wait(PATIENCE), "RabbitMQ does not trace"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(PATIENCE)

    def _listen(self) -> None:
        with self._server.connect() as connection:
            channel = connection.channel()
            queue = channel.queue_declare("", exclusive=True).method.queue
            channel.queue_bind(queue, _EXCHANGE, routing_key="#")
            channel.basic_consume(queue, self._on_event, auto_ack=True)
            self._ready.set()
            while not self._end.is_set():
                connection.process_data_events(0.2)

    def _on_event(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        found = _SUBJECT.search(body)
        if found is None:
            return
        subject, (kind, _, queue) = found[1].decode(), method.routing_key.partition(".")
        headers = properties.headers
        again = ", again" if headers.get("redelivered") else ""
        event = f"{kind} {queue or headers['routing_keys'][0]}{again} at {time.monotonic():.2f}"
        self._history.setdefault(subject, []).append(event)
        if kind == "publish":
            routed = headers["routing_keys"]
            self._published[subject] += "emails" in routed
            self._delayed[subject] += "emails.DQ" in routed
        elif headers["redelivered"]:
            self._redelivered[subject] += queue == "emails"
            self._redelivered_delayed[subject] += queue == "emails.DQ"
