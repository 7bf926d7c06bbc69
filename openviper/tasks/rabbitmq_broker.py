"""Dramatiq's RabbitMQ broker: it waits for confirms, shares no connection with a child process, and loses no message.

RabbitMQ delivers again the messages that a worker had when its connection broke.
"""

import copy
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
from dramatiq import Message, Middleware
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.common import dq_name, xq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import SkipMessage
from dramatiq.worker import ConsumerThread
from pika.exceptions import AMQPError, ChannelClosedByBroker

from openviper.exceptions import ImproperlyConfigured
from openviper.tasks.settings import TaskSettings

__all__ = ["NOBODY", "connection_parameters", "make_rabbitmq_broker"]

NOBODY = "openviper.no.such.queue"
"""No queue has this name: RabbitMQ confirms what is published to it, unless it has an alarm, and drops it."""

_ACCESS_REFUSED = 403
_PRECONDITION_FAILED = 406  # the queue exists with other arguments
_FARTHEST = 10 * 365 * 24 * 3600.0  # seconds ahead until which a delay can be meant
_LONGEST_HOLD = 1200.0  # seconds
_HEARTBEAT = 30  # seconds, unless the URL says another


def connection_parameters(settings: TaskSettings, *, limit: float | None = None) -> pika.URLParameters:
    """Return the parameters of one attempt to connect; ``limit``: seconds for the whole of it, None: 10.

    Of the URL's query only ``heartbeat`` is used.

    Raises:
        ImproperlyConfigured: a value in the query cannot be read.
    """
    try:
        parameters = pika.URLParameters(settings.url)
    except ValueError as error:
        raise ImproperlyConfigured(f'TASKS["broker_url"]: {error}') from None
    parameters.connection_attempts = 1
    parameters.retry_delay = 0
    parameters.socket_timeout = parameters.stack_timeout = 10.0 if limit is None else limit
    parameters.blocked_connection_timeout = 60.0
    if parameters.heartbeat is None:
        parameters.heartbeat = _HEARTBEAT
    return parameters


def make_rabbitmq_broker(settings: TaskSettings) -> RabbitmqBroker:
    """Make the broker of ``settings``; it connects at first use."""
    library = logging.getLogger("pika")
    if library.level == logging.NOTSET:
        # It logs several errors and a traceback for every refused connection; we log one line.
        library.setLevel(logging.CRITICAL)
    broker = _RabbitmqBroker(url=settings.url, confirm_delivery=True, connection=connection_parameters(settings))
    broker.add_middleware(_Deliveries())
    return broker


class _RabbitmqBroker(RabbitmqBroker):
    def __init__(self, *, connection: pika.URLParameters, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.parameters = connection
        self.stopping = threading.Event()
        self.current = threading.local()
        self.holds: Callable[[str], bool] = lambda _queue: False  # True: nothing may be taken from the queue now

    @property
    def redelivered(self) -> bool:
        """True if the message in this thread's hands was delivered before, to a worker that did not acknowledge it."""
        message = getattr(self.current, "message", None)
        return message is not None and bool(message.redelivered)

    def leave_unacknowledged(self) -> None:
        """Leave the message in this thread's hands to the next worker: RabbitMQ delivers it again."""
        self.current.message.consumer = None

    @property
    def consumer_class(self) -> "type[_Consumer]":
        return _Consumer

    def _declare_queue(self, queue_name: str) -> Any:
        return self._declare(super()._declare_queue, queue_name, queue_name)

    def _declare_dq_queue(self, queue_name: str) -> Any:
        return self._declare(super()._declare_dq_queue, queue_name, dq_name(queue_name))

    def _declare_xq_queue(self, queue_name: str) -> Any:
        return self._declare(super()._declare_xq_queue, queue_name, xq_name(queue_name))

    def _declare(self, declare: Callable[[str], Any], queue_name: str, name: str) -> Any:
        """Declare the queue ``name``; one that exists is used as it is.

        It may have other arguments, as a quorum queue has, or the user may not be allowed to declare any.
        """
        try:
            return declare(queue_name)
        except ChannelClosedByBroker as error:
            if error.reply_code not in (_ACCESS_REFUSED, _PRECONDITION_FAILED):
                raise
            del self.channel
            try:
                return self.channel.queue_declare(queue=name, passive=True)
            except ChannelClosedByBroker:
                raise error from None

    def enqueue(self, message: "Message[Any]", *, delay: int | None = None) -> "Message[Any]":
        """Enqueue ``message``; a worker that passes on a delayed message waits for the end of a resource alarm first.

        RabbitMQ accepts when the alarm ends what was published meanwhile, however often, and although the connection
        was given up: each try would be another copy.
        """
        thread = threading.current_thread()
        if isinstance(thread, ConsumerThread):
            while self._alarmed():
                if not thread.running:
                    raise ConnectionClosed("the worker is stopping while RabbitMQ has a resource alarm")
                connection: Any = thread.consumer.connection  # type: ignore[union-attr]
                connection.sleep(1.0)  # answers heartbeats
        return super().enqueue(message, delay=delay)

    def _alarmed(self) -> bool:
        """Ask at most once a second whether RabbitMQ has stopped reading what is published."""
        if time.monotonic() < getattr(self.current, "fine_until", 0.0):
            return False
        parameters: Any = copy.copy(self.parameters)
        parameters.blocked_connection_timeout = 1.0
        alarms: list[object] = []
        try:
            connection = pika.BlockingConnection(parameters)
            connection.add_on_connection_blocked_callback(lambda *_: alarms.append(None))
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", NOBODY, b"")
            connection.process_data_events(0)
            connection.close()
        except AMQPError:
            pass  # whoever publishes next will meet it
        if not alarms:
            self.current.fine_until = time.monotonic() + 1.0
        return bool(alarms)

    def renew_after_fork(self) -> None:
        self.state = threading.local()
        self.connections.clear()
        self.channels.clear()


class _Consumer(_RabbitmqConsumer):
    """Acknowledges only messages that it has delivered itself.

    After a broken connection Dramatiq gives the earlier consumer's messages to the next one, whose channel counts from
    1 again: there the same tag is another message, which RabbitMQ would delete.
    """

    def __init__(self, broker: _RabbitmqBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self._prefetch = prefetch
        self._timeout = timeout / 1000
        self._held_since: float | None = None  # time.monotonic()
        self._passing = 0

    def __next__(self) -> Any:
        if not self.broker.holds(self.queue_name):
            self._held_since, self._passing = None, 0
        elif not self._may_pass():
            try:
                self.connection.process_data_events(self._timeout)  # answers heartbeats
            except AMQPError as error:
                raise ConnectionClosed(error) from None
            return None
        message = super().__next__()
        if message is None:
            return None
        message.consumer = self
        if message.queue_name != self.queue_name:
            # It was moved by hand, say. Dramatiq looks for the consumer by this name, and a worker's thread would end.
            message._message = message.copy(queue_name=self.queue_name)
        eta = message.options.get("eta")
        if isinstance(eta, int | float) and not eta < (time.time() + _FARTHEST) * 1000:
            self.logger.error("message %s on queue %r: its eta is not a time; dead-lettered", message, self.queue_name)
            self.nack(message)
            return None
        return message

    def _may_pass(self) -> bool:
        """True for the messages that RabbitMQ has delivered already, once they have been held for long.

        It closes the channel of a consumer that leaves one unacknowledged for 30 minutes. What takes them puts them on
        the queue again.
        """
        now = time.monotonic()
        if self._held_since is None:
            self._held_since = now
        elif now - self._held_since > _LONGEST_HOLD:
            self._held_since, self._passing = now, self._prefetch
        if self._passing == 0:
            return False
        self._passing -= 1
        return True

    def ack(self, message: Any) -> None:
        if message.consumer is self:
            super().ack(message)

    def nack(self, message: Any) -> None:
        if message.consumer is self:
            super().nack(message)


class _Deliveries(Middleware):
    """Keeps each thread's message at hand, and notes the worker's end.

    Messages that were delivered over a channel that has ended are skipped: RabbitMQ delivers them again.
    """

    def before_worker_boot(self, broker: Any, _worker: Any) -> None:
        broker.stopping.clear()

    def before_worker_shutdown(self, broker: Any, _worker: Any) -> None:
        broker.stopping.set()

    def before_process_message(self, broker: Any, message: Any) -> None:
        if not message.consumer.channel.is_open:
            raise SkipMessage
        broker.current.message = message
