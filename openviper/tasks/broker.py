"""Make the broker of the setting ``TASKS``; one function for each kind."""

import threading
from typing import Any

import dramatiq
from dramatiq import Broker, Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.message import get_encoder, set_encoder

from openviper.conf import describe_origin, require
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import after_fork_in_child
from openviper.tasks.encoder import BytesEncoder
from openviper.tasks.loop import WorkerLoop
from openviper.tasks.runner import refuse_worker
from openviper.tasks.settings import TaskSettings
from openviper.text import shown

__all__ = ["declaring_broker", "get_broker"]

_NOT_ENABLED = 'TASKS["enabled"]: is not set, so there is no broker; set TASKS["broker"]'

_lock = threading.Lock()
_made: tuple[TaskSettings, Broker] | None = None


def get_broker() -> Broker:
    """Return the broker of ``TASKS``, also Dramatiq's global one. Made once; it connects at first use.

    Raises:
        ImproperlyConfigured: ``TASKS`` is wrong, or tasks are not enabled.
        MissingDependency: the broker's client library is not installed.
    """
    settings = TaskSettings.from_settings()
    if not settings.enabled:
        raise ImproperlyConfigured(f"{_NOT_ENABLED}; {describe_origin()}")
    return _of(settings)


def declaring_broker() -> Broker:
    """Return the broker that actors are declared on; with tasks off one that refuses to enqueue."""
    return _of(TaskSettings.from_settings())


def _of(settings: TaskSettings) -> Broker:
    global _made
    with _lock:
        if _made is None or _made[0] != settings:
            if _made is not None:
                _made[1].close()
            broker = _make(settings)
            _made = settings, broker
            dramatiq.set_broker(broker)
        return _made[1]


def _make(settings: TaskSettings) -> Broker:
    if not isinstance(get_encoder(), BytesEncoder):
        set_encoder(BytesEncoder())
    broker = _MAKERS[settings.broker](settings) if settings.enabled else _NoBroker()
    broker.add_middleware(WorkerLoop())
    return broker


def _redis(settings: TaskSettings) -> Broker:
    require("redis", extra="redis", purpose='TASKS["broker"] = "redis"')
    from openviper.tasks.redis_broker import make_redis_broker

    return make_redis_broker(settings)


def _rabbitmq(settings: TaskSettings) -> Broker:
    require("pika", extra="rabbitmq", purpose='TASKS["broker"] = "rabbitmq"')
    from openviper.tasks.rabbitmq_broker import make_rabbitmq_broker

    return make_rabbitmq_broker(settings)


def _stub(_settings: TaskSettings) -> Broker:
    return StubBroker()


_MAKERS = {"redis": _redis, "rabbitmq": _rabbitmq, "stub": _stub}


class _NoBroker(StubBroker):
    """Lets modules with actors be imported where tasks are off."""

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "worker_boot":
            refuse_worker(f"{_NOT_ENABLED}; {describe_origin()}")
        super().emit_before(signal, *args, **kwargs)

    def enqueue(self, message: "Message[Any]", *, delay: int | None = None) -> "Message[Any]":  # noqa: ARG002
        raise ImproperlyConfigured(
            f'TASKS["enabled"]: is not set, so {shown(message.actor_name)} cannot be sent to a worker; '
            'set TASKS["broker"]'
        )


def _forget_in_child() -> None:
    # Sockets and the broker's identity belong to one process: two with the same identity would take each other's
    # messages for their own. The broker renews them itself.
    global _lock
    _lock = threading.Lock()
    if _made is not None:
        renew = getattr(_made[1], "renew_after_fork", None)
        if renew is not None:
            renew()


after_fork_in_child(_forget_in_child)
