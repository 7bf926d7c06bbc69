"""Brokers of tasks do not outlive the settings that made them."""

from support.rabbitmq import rabbitmq_server
from support.redis import redis_server

__all__ = ["rabbitmq_server", "redis_server"]
