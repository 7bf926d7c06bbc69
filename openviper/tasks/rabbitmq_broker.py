"""Dramatiq's RabbitMQ broker, which waits for the broker's confirmation and shares no connection with a child."""

import logging
import threading
from typing import Any

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from openviper.tasks.settings import TaskSettings

__all__ = ["connection_parameters", "make_rabbitmq_broker"]

_HEARTBEAT = 30  # seconds, unless the URL says another


def connection_parameters(settings: TaskSettings, *, limit: float | None = None) -> pika.URLParameters:
    """How to connect, once and without tries underneath; ``limit``: seconds for the whole of it. None: 10.

    Of the URL's query, ``heartbeat`` counts.
    """
    parameters = pika.URLParameters(settings.url)
    parameters.connection_attempts = 1
    parameters.retry_delay = 0
    parameters.socket_timeout = parameters.stack_timeout = 10.0 if limit is None else limit
    parameters.blocked_connection_timeout = 60.0
    if parameters.heartbeat is None:
        parameters.heartbeat = _HEARTBEAT
    return parameters


def make_rabbitmq_broker(settings: TaskSettings) -> RabbitmqBroker:
    """The broker of ``settings``; nothing is connected yet."""
    library = logging.getLogger("pika")
    if library.level == logging.NOTSET:
        # It logs several errors and a traceback for every refused connection, which we tell in one line.
        library.setLevel(logging.CRITICAL)
    return _RabbitmqBroker(url=settings.url, confirm_delivery=True, connection=connection_parameters(settings))


class _RabbitmqBroker(RabbitmqBroker):
    def __init__(self, *, connection: pika.URLParameters, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.parameters = connection

    def renew_after_fork(self) -> None:
        self.state = threading.local()
        self.connections.clear()
        self.channels.clear()
