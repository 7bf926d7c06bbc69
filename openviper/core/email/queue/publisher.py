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
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from openviper.core.email.errors import InvalidMessage, QueueUnavailable
from openviper.tasks.rabbitmq_broker import NOBODY

__all__ = ["Declaration", "PublishRefused", "Publisher", "alarm_text", "reason_of"]

logger = logging.getLogger("openviper.email")

_PERSISTENT = 2
_PRECONDITION_FAILED = 406  # the queue exists with other arguments, or a message is too large
_SIZE_LIMIT = re.compile(r"message size \d+ is larger than .*?(\d+)")
_LIMIT_KNOWN = 60.0  # seconds, since an operator may raise it
_ACCESS_REFUSED = 403
_GRANT = (
    "the user needs the permissions configure ^emails, write ^(emails|amq\\.default) and read ^emails: "
    "rabbitmqctl set_permissions"
)
_SURE = 1.0  # seconds after a confirm within which no alarm is expected
_BLOCKED_GRACE = 0.3  # seconds for the confirms of what RabbitMQ had read before it stopped reading


class PublishRefused(QueueUnavailable):
    """RabbitMQ refuses this message for good: the user may not publish it."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A durable queue and its arguments."""

    name: str
    arguments: dict[str, Any]


class Publisher:
    """Opens a connection when there is something to publish and none is open; answers heartbeats meanwhile.

    Every message is persistent and mandatory, and its future resolves when the broker has confirmed it. When the
    connection ends, everything unconfirmed fails: the broker may or may not have it. During a memory or disk alarm
    RabbitMQ reads nothing from a connection that publishes; it says so, and then nothing more is written to it.

    RabbitMQ closes the channel at a message that is larger than its ``max_message_size``, and tells that limit only
    then; for a while such messages are refused here, so that those of others do not fail with them.
    """

    def __init__(self, parameters: pika.URLParameters, declarations: tuple[Declaration, ...]) -> None:
        self._parameters = parameters
        self._declarations = declarations
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._size_limit: tuple[int, float] | None = None  # bytes, and when RabbitMQ has told them

    @property
    def blocked(self) -> bool:
        """True while RabbitMQ reads nothing because of an alarm."""
        session = self._session
        return session is not None and not session.ended and session.alarm is not None

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        expires_ms: int | None = None,
        headers: Mapping[str, Any] | None = None,
        patient: bool = False,
    ) -> "Future[None]":
        """Publish one message; the future resolves with its confirm.

        It fails with QueueUnavailable, or with InvalidMessage where RabbitMQ does not take messages of this size.
        During an alarm it fails at once, or, if ``patient``, waits for the alarm's end.
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
            self._session.add(_Message(queue, body, expiration, headers, future, patient))
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
    patient: bool


class _Session:
    """One connection from opening to its end, and its thread."""

    def __init__(
        self,
        parameters: pika.URLParameters,
        declarations: tuple[Declaration, ...],
        on_size_limit: Callable[[int], None],
    ) -> None:
        self.ended = False
        self.alarm: str | None = None
        self._declarations = list(declarations)
        self._on_size_limit = on_size_limit
        self._declaring: Declaration | None = None
        self._refusal: BaseException | None = None
        self._waiting: list[_Message] = []
        self._unconfirmed: dict[int, _Message] = {}
        self._tag = 0
        self._sure_until = 0.0
        self._question: int | None = None  # the tag of an empty message that waits for its confirm
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
        self._connection.add_on_connection_blocked_callback(self._blocked)
        self._connection.add_on_connection_unblocked_callback(self._unblocked)
        threading.Thread(target=self._run, name="openviper-publisher", daemon=True).start()

    def add(self, message: _Message) -> None:
        with self._lock:
            if not self.ended and (self.alarm is None or message.patient):
                self._waiting.append(message)
                self._call(self._flush)
                return
        reason = "the connection has ended" if self.alarm is None else alarm_text(self.alarm)
        message.future.set_exception(QueueUnavailable(f"RabbitMQ: {reason}"))

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
        code = error.reply_code if isinstance(error, ChannelClosedByBroker) else None
        if self._declaring is None or code not in (_PRECONDITION_FAILED, _ACCESS_REFUSED) or self._refusal is not None:
            self._end(self._refusal or error)
            return
        # The operator has declared this queue, with other arguments (a quorum queue, say) or for a user who may declare
        # none; it is used as it is.
        self._refusal = error
        self._connection.channel(on_open_callback=self._channel_opened)

    def _declare_next(self, frame: Any) -> None:
        if frame is not None:
            self._declaring = self._refusal = None
        if self._declaring is None:
            if not self._declarations:
                self._channel.confirm_delivery(self._confirmed, callback=self._be_ready)
                return
            self._declaring = self._declarations.pop(0)
        self._channel.queue_declare(
            self._declaring.name,
            passive=self._refusal is not None,
            durable=True,
            arguments=self._declaring.arguments,
            callback=self._declare_next,
        )

    def _be_ready(self, _frame: Any) -> None:
        self._ready = True
        self._flush()

    def _flush(self) -> None:
        if not self._ready or self.ended or self.alarm is not None or self._question is not None:
            return
        if time.monotonic() > self._sure_until and self._waiting:
            self._ask()
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

    def _ask(self) -> None:
        """Publish an empty message to nobody: RabbitMQ tells of an alarm before it confirms.

        Otherwise the first message of an alarm would be sent in another mode and, when the alarm ends, by a worker too.
        """
        self._tag += 1
        self._question = self._tag
        try:
            self._channel.basic_publish("", NOBODY, b"")
        except AMQPError as error:
            self._end(error)

    def _blocked(self, _connection: Any, frame: Any) -> None:
        """Withdraw what waits, and, after a moment for confirms on their way, give up what is unconfirmed.

        RabbitMQ accepts the messages that it has not read yet when the alarm ends.
        """
        alarm = str(frame.method.reason)
        with self._lock:
            self.alarm = alarm
            withdrawn = [message for message in self._waiting if not message.patient]
            self._waiting = [message for message in self._waiting if message.patient]
        self._give_up(withdrawn, alarm)
        unconfirmed = [message for message in self._unconfirmed.values() if not message.patient]
        self._loop.call_later(_BLOCKED_GRACE, lambda: self._give_up(unconfirmed, alarm))

    def _give_up(self, messages: "list[_Message]", alarm: str) -> None:
        for message in messages:
            if not message.future.done():
                message.future.set_exception(QueueUnavailable(f"RabbitMQ: {alarm_text(alarm)}"))

    def _unblocked(self, _connection: Any, _frame: Any) -> None:
        self.alarm = None
        self._flush()

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        self._sure_until = time.monotonic() + _SURE
        if self._question is not None and (
            method.delivery_tag == self._question or (method.multiple and method.delivery_tag > self._question)
        ):
            self._question = None
            self._flush()
        tags = (
            [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        for tag in tags:
            message = self._unconfirmed.pop(tag, None)
            if message is None or message.future.done():
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
                refused = isinstance(error, ChannelClosedByBroker) and error.reply_code == _ACCESS_REFUSED
                failure: Exception = (PublishRefused if refused else QueueUnavailable)(f"RabbitMQ: {reason}")
                if limit is not None and len(message.body) > limit:
                    failure = _too_large(len(message.body), limit)
                message.future.set_exception(failure)
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


def alarm_text(alarm: str) -> str:
    """Return why nothing is accepted; ``alarm`` is RabbitMQ's own reason."""
    return f"a resource alarm ({alarm}) keeps it from accepting messages; free memory or disk space on its machine"


def reason_of(error: BaseException) -> str:
    """Return the reason inside one of pika's errors, whose own texts are empty, and the remedy where one is known."""
    if isinstance(error, AMQPConnectorStackTimeout):
        return "connected, but no answer came in time"
    if isinstance(error, AMQPConnectionWorkflowFailed):
        return reason_of(error.exceptions[-1])
    if isinstance(error, AMQPConnectorPhaseErrorBase):
        return reason_of(error.exception)
    if error.args and isinstance(error.args[0], AMQPConnectorException):
        return reason_of(error.args[0])
    if isinstance(error, ProbableAuthenticationError):
        return 'it refuses the login; correct user and password in TASKS["broker_url"]'
    if isinstance(error, ChannelClosedByBroker) and error.reply_code == _ACCESS_REFUSED:
        return f"{error.reply_text}; {_GRANT}"
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ProbableAccessDeniedError):
        remedy = 'correct the end of TASKS["broker_url"], or create the virtual host' if "not found" in text else _GRANT
        return f"{text}; {remedy}"
    return text
