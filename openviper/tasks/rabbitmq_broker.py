"""Dramatiq's RabbitMQ broker: it waits for confirms, shares no connection with a child process, and loses no message.

RabbitMQ delivers again the messages that a worker had when its connection broke.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pika
from dramatiq import Broker, Middleware
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.common import dq_name, xq_name
from dramatiq.middleware import SkipMessage
from pika.exceptions import ChannelClosedByBroker

from openviper.exceptions import ImproperlyConfigured
from openviper.tasks.settings import TaskSettings

__all__ = ["connection_parameters", "make_rabbitmq_broker"]

_PRECONDITION_FAILED = 406  # the queue exists with other arguments
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
    broker.add_middleware(_StaleMessages())
    return broker


class _RabbitmqBroker(RabbitmqBroker):
    def __init__(self, *, connection: pika.URLParameters, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.parameters = connection

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
        """Declare the queue ``name``; one that exists with other arguments, a quorum queue say, is used as it is."""
        try:
            return declare(queue_name)
        except ChannelClosedByBroker as error:
            if error.reply_code != _PRECONDITION_FAILED:
                raise
        del self.channel
        return self.channel.queue_declare(queue=name, passive=True)

    def renew_after_fork(self) -> None:
        self.state = threading.local()
        self.connections.clear()
        self.channels.clear()


class _Consumer(_RabbitmqConsumer):
    """Acknowledges only messages that it has delivered itself.

    After a broken connection Dramatiq gives the earlier consumer's messages to the next one, whose channel counts from
    1 again: there the same tag is another message, which RabbitMQ would delete.
    """

    def __next__(self) -> Any:
        message = super().__next__()
        if message is not None:
            message.consumer = self
        return message

    def ack(self, message: Any) -> None:
        if message.consumer is self:
            super().ack(message)

    def nack(self, message: Any) -> None:
        if message.consumer is self:
            super().nack(message)


class _StaleMessages(Middleware):
    """Skips messages that were delivered over a channel that has ended: RabbitMQ delivers them again."""

    def before_process_message(self, _broker: Broker, message: Any) -> None:
        if not message.consumer.channel.is_open:
            raise SkipMessage
