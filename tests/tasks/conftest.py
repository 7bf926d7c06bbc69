"""Brokers of tasks do not outlive the settings that made them."""

from support.redis import redis_server

__all__ = ["redis_server"]
