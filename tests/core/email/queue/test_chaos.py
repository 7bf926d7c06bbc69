"""Workers and brokers are killed, the mail server drops and refuses: nothing is lost, and duplicates are explained."""

import asyncio
from pathlib import Path

import pytest
from support.chaos import run_chaos
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer

from openviper.core.email.queue import close_queue

pytestmark = pytest.mark.long


async def test_nothing_is_lost_and_nothing_unexplained_comes_twice_on_redis(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    try:
        report = await run_chaos(tmp_path, redis_server, messages=300, kills=3)
    finally:
        await asyncio.to_thread(close_queue)
    print(report)
    assert len(report.enqueued) == 300
    assert report.lost == set(), report
    assert report.duplicates == report.explained, report


async def test_nothing_is_lost_on_rabbitmq(tmp_path: Path, rabbitmq_server: RabbitmqServer) -> None:
    """It has no memory of what was sent, so duplicates are counted only."""
    try:
        report = await run_chaos(tmp_path, rabbitmq_server, messages=150, kills=2)
    finally:
        await asyncio.to_thread(close_queue)
        await asyncio.to_thread(rabbitmq_server.restore)
    print(report)
    assert report.lost == set(), report
