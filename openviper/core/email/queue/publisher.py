"""Publish to RabbitMQ from any thread, with confirms: one connection, kept alive in a thread of its own."""

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorException,
    AMQPConnectorPhaseErrorBase,
    AMQPConnectorStackTimeout,
)
from pika.channel import Channel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from openviper.core.email.errors import InvalidMessage, QueueUnavailable

__all__ = ["Declaration", "Publisher", "reason_of"]

logger = logging.getLogger("openviper.email")

_PERSISTENT = 2
_PRECONDITION_FAILED = 406  # the queue exists with other arguments, or a message is too large
_SIZE_LIMIT = re.compile(r"message size \d+ is larger than .*?(\d+)")
_LIMIT_KNOWN = 60.0  # seconds, since an operator may raise it


@dataclass(frozen=True, slots=True)
class Declaration:
    """A durable queue and its arguments."""

    name: str
    arguments: dict[str, Any]


class Publisher:
    """Opens a connection when there is something to publish and none is open; answers heartbeats meanwhile.

    Every message is persistent and mandatory, and its future resolves when the broker has confirmed it. When the
    connection ends, everything unconfirmed fails: the broker may or may not have it.

    RabbitMQ closes the channel at a message that is larger than its ``max_message_size``, and tells that limit only
    then; for a while such messages are refused here, so that those of others do not fail with them.
    """

    def __init__(self, parameters: pika.URLParameters, declarations: tuple[Declaration, ...]) -> None:
        self._parameters = parameters
        self._declarations = declarations
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._size_limit: tuple[int, float] | None = None  # bytes, and when RabbitMQ has told them

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        expires_ms: int | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> "Future[None]":
        """Publish one message; the future resolves with its confirm.

        It fails with QueueUnavailable, or with InvalidMessage where RabbitMQ does not take messages of this size.
        """
        future: Future[None] = Future()
        with self._lock:
            limit = self._size_limit
            if limit is not None and len(body) > limit[0] and time.monotonic() - limit[1] < _LIMIT_KNOWN:
                future.set_exception(_too_large(len(body), limit[0]))
                return future
            if self._session is None or self._session.ended:
                self._session = _Session(self._parameters, self._declarations, self._learn_size_limit)
            expiration = None if expires_ms is None else str(expires_ms)
            self._session.add(_Message(queue, body, expiration, headers, future))
        return future

    def _learn_size_limit(self, limit: int) -> None:
        self._size_limit = limit, time.monotonic()

    def drop(self) -> None:
        """End the connection at once, because it no longer answers."""
        with self._lock:
            if self._session is not None:
                self._session.abort()
                self._session = None

    def close(self) -> None:
        """Close the connection as AMQP asks for."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None


@dataclass(eq=False, slots=True)
class _Message:
    queue: str
    body: bytes
    expiration: str | None
    headers: Mapping[str, Any] | None
    future: "Future[None]"


class _Session:
    """One connection from opening to its end, and its thread."""

    def __init__(
        self,
        parameters: pika.URLParameters,
        declarations: tuple[Declaration, ...],
        on_size_limit: Callable[[int], None],
    ) -> None:
        self.ended = False
        self._declarations = list(declarations)
        self._on_size_limit = on_size_limit
        self._waiting: list[_Message] = []
        self._unconfirmed: dict[int, _Message] = {}
        self._tag = 0
        self._ready = False
        self._lock = threading.Lock()
        self._channel: Any = None
        self._loop = IOLoop()
        self._connection = SelectConnection(
            parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._closed,
            on_close_callback=self._closed,
            custom_ioloop=self._loop,
        )
        threading.Thread(target=self._run, name="openviper-publisher", daemon=True).start()

    def add(self, message: _Message) -> None:
        with self._lock:
            if not self.ended:
                self._waiting.append(message)
                self._call(self._flush)
                return
        message.future.set_exception(QueueUnavailable("RabbitMQ: the connection has ended"))

    def abort(self) -> None:
        self._call(lambda: self._end(None))

    def close(self) -> None:
        self._call(lambda: self._connection.close() if self._connection.is_open else self._end(None))

    def _call(self, function: Callable[[], object]) -> None:
        self._loop.add_callback_threadsafe(function)

    def _run(self) -> None:
        try:
            self._loop.start()
        except Exception as error:  # a client library's fault must not leave senders waiting
            logger.exception("the connection to RabbitMQ failed unexpectedly")
            self._end(error)
        self._loop.close()

    def _opened(self, connection: Any) -> None:
        if self.ended:  # given up while it was being opened
            connection.close()
            return
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._returned)
        self._declare_next(None)

    def _channel_closed(self, _channel: Channel, error: BaseException) -> None:
        if (
            self._ready
            or self.ended
            or not isinstance(error, ChannelClosedByBroker)
            or error.reply_code != _PRECONDITION_FAILED
        ):
            self._end(error)
            return
        # The operator has declared this queue with other arguments (a quorum queue, say); it is used as it is.
        self._connection.channel(on_open_callback=self._channel_opened)

    def _declare_next(self, _frame: Any) -> None:
        if not self._declarations:
            self._channel.confirm_delivery(self._confirmed, callback=self._be_ready)
            return
        declaration = self._declarations.pop(0)
        self._channel.queue_declare(
            declaration.name, durable=True, arguments=declaration.arguments, callback=self._declare_next
        )

    def _be_ready(self, _frame: Any) -> None:
        self._ready = True
        self._flush()

    def _flush(self) -> None:
        if not self._ready or self.ended:
            return
        with self._lock:
            messages, self._waiting = self._waiting, []
        for message in messages:
            if not message.future.set_running_or_notify_cancel():
                continue  # its sender has given up
            self._tag += 1
            self._unconfirmed[self._tag] = message
            properties = pika.BasicProperties(
                delivery_mode=_PERSISTENT, expiration=message.expiration, headers=message.headers
            )
            try:
                self._channel.basic_publish("", message.queue, message.body, properties, mandatory=True)
            except AMQPError as error:
                self._end(error)
                return

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = (
            [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        for tag in tags:
            message = self._unconfirmed.pop(tag, None)
            if message is None:
                continue
            if isinstance(method, pika.spec.Basic.Ack):
                message.future.set_result(None)
            else:
                message.future.set_exception(QueueUnavailable("RabbitMQ refused the message"))

    def _returned(self, _channel: Any, _method: Any, _properties: Any, _body: bytes) -> None:
        # The queue was deleted. The next connection declares it again.
        self._end(QueueUnavailable("RabbitMQ: the queue was deleted"))

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
            lost = [*self._waiting, *self._unconfirmed.values()]
            self._waiting.clear()
            self._unconfirmed.clear()
        reason = "no answer" if error is None else reason_of(error)
        limit = _size_limit(error)
        if limit is not None:
            self._on_size_limit(limit)
        for message in lost:
            if not message.future.done():
                failure = QueueUnavailable(f"RabbitMQ: {reason}")
                refused = limit is not None and len(message.body) > limit
                message.future.set_exception(_too_large(len(message.body), limit or 0) if refused else failure)
        if self._connection.is_open:
            # Not close(), which waits for an answer. One that is still being opened ends by its own time limit.
            self._connection._terminate_stream(error or ConnectionError("given up: no answer"))

    def _closed(self, _connection: Any, error: BaseException) -> None:
        self._end(error)
        self._loop.stop()


def _size_limit(error: BaseException | None) -> int | None:
    """Return the largest size that RabbitMQ takes, if it has closed the channel because of a message's size."""
    if not isinstance(error, ChannelClosedByBroker) or error.reply_code != _PRECONDITION_FAILED:
        return None
    match = _SIZE_LIMIT.search(error.reply_text)
    return None if match is None else int(match[1])


def _too_large(size: int, limit: int) -> InvalidMessage:
    return InvalidMessage(
        f"message: {size:,} bytes as queued are more than RabbitMQ's max_message_size ({limit:,}); raise that in "
        "rabbitmq.conf, or send the message with background=False"
    )


def reason_of(error: BaseException) -> str:
    """Return the reason inside one of pika's errors, whose own texts are empty."""
    if isinstance(error, AMQPConnectorStackTimeout):
        return "connected, but no answer came in time"
    if isinstance(error, AMQPConnectionWorkflowFailed):
        return reason_of(error.exceptions[-1])
    if isinstance(error, AMQPConnectorPhaseErrorBase):
        return reason_of(error.exception)
    if error.args and isinstance(error.args[0], AMQPConnectorException):
        return reason_of(error.args[0])
    return f"{type(error).__name__}: {error}"
