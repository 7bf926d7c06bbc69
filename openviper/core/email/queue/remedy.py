"""Choose the remedy for a broker that accepts no mail."""

from openviper.core.email.errors import QueueUnavailable

__all__ = ["START_BROKER", "broker_remedy"]

START_BROKER = 'start it, or correct TASKS["broker_url"]'

# By a part of the client library's error, its class or its text.
_REMEDIES = {
    "OutOfMemoryError": "give Redis more maxmemory, or remove data: Redis refuses mail, and must not evict any",
    "ReadOnlyError": 'name the primary in TASKS["broker_url"]: this one is a replica',
    "NoPermissionError": "allow this user the keys and commands of the queue (ACL)",
    "AuthenticationError": 'correct the user and the password in TASKS["broker_url"]',
    "resource alarm": "RabbitMQ has a memory or disk alarm: see rabbitmq-diagnostics alarms",
    "ACCESS_REFUSED": "let this user configure, write and read the queues whose names begin with emails (rabbitmqctl)",
}


def broker_remedy(error: QueueUnavailable | TimeoutError) -> str | None:
    """Return the remedy for a broker that answered with ``error``; None if it gave no reason that is known."""
    known = f"{type(error.__cause__).__name__} {error}"
    return next((remedy for name, remedy in _REMEDIES.items() if name in known), None)
