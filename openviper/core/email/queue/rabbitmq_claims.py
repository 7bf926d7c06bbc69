"""Count on RabbitMQ the attempts that ended with their worker.

RabbitMQ says only that it has delivered a message before, which is true as well of those that a worker had fetched and
never begun with. So an attempt at such a message is recorded first: as a message in a short-lived queue of its own,
which the end of the attempt deletes. What is still there was left by workers that died.
"""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from openviper.core.email.queue.names import QUEUE
from openviper.core.email.queue.publisher import reason_of

__all__ = ["Claims"]

logger = logging.getLogger("openviper.email")

T = TypeVar("T")

_KEEP_MS = 24 * 3600 * 1000  # for which a queue stays that no worker asks for
_TRIES = 3
_PERSISTENT = 2


class Claims:
    """Records attempts; ``connect`` opens a connection. Any thread may use it."""

    def __init__(self, connect: "Callable[[], pika.BlockingConnection]") -> None:
        self._connect = connect
        self._told = False

    def begin(self, key: str) -> int:
        """Record the beginning of an attempt at the job ``key``; return how many earlier ones never ended.

        Where RabbitMQ does not let them be recorded, the attempt is not held up: 0 is returned, and the reason logged.
        """

        def record(channel: Any) -> int:
            name = _queue_name(key)
            arguments = {"x-expires": _KEEP_MS, "x-queue-type": "classic"}
            begun: int = channel.queue_declare(name, durable=True, arguments=arguments).method.message_count
            channel.confirm_delivery()
            # Without a body, for RabbitMQ reads no bodies during a resource alarm.
            channel.basic_publish("", name, b"", pika.BasicProperties(delivery_mode=_PERSISTENT), mandatory=True)
            return begun

        return self._run(record) or 0

    def end(self, key: str) -> None:
        """Forget the attempts at the job ``key``: the result of the last one is recorded."""
        self._run(lambda channel: channel.queue_delete(_queue_name(key)))

    def _run(self, operation: Callable[[Any], T]) -> T | None:
        """Return the result of ``operation`` on a new channel, or None where there is none."""
        error: Exception | None = None
        for number in range(_TRIES):
            if number:
                threading.Event().wait(0.5 * number)
            try:
                connection = self._connect()
                try:
                    return operation(connection.channel())
                finally:
                    with contextlib.suppress(AMQPError):  # it may be closed, or not be read because of an alarm
                        connection.close()
            except (AMQPError, OSError) as failure:
                error = failure
                if isinstance(failure, ChannelClosedByBroker):
                    break
        if error is not None and not self._told:
            self._told = True
            logger.warning("RabbitMQ: the deaths of workers are not counted: %s", reason_of(error))
        return None


def _queue_name(key: str) -> str:
    return f"{QUEUE}.claim.{hashlib.sha256(key.encode()).hexdigest()[:32]}"
