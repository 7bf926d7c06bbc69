"""Run the long chaos test: ``python benchmarks/queue_chaos.py [redis|rabbitmq] [--messages 2000] [--kills 20]``.

It kills two worker runners in turn, and Redis once; the mail server drops 5 % of connections at every verb and refuses
5 % temporarily. It prints the Message-IDs of lost and duplicated messages. It exits with 1 if one was lost or, on
Redis, if one was duplicated although its connection was not cut and its worker not killed after the final dot.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from support.chaos import run_chaos
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer

from openviper.core.email.queue import close_queue


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("broker", choices=["redis", "rabbitmq"], nargs="?", default="redis")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openviper-chaos-") as folder:
        place = Path(folder)
        (place / "broker").mkdir()
        server: Any = (RedisServer if given.broker == "redis" else RabbitmqServer)(place / "broker")
        try:
            server.start()
            chaos = run_chaos(place, server, messages=given.messages, kills=given.kills, seed=given.seed)
            report = asyncio.run(chaos)
            close_queue()
        finally:
            server.close()
    print(report)
    unexplained = report.duplicates - report.explained if given.broker == "redis" else set()
    return 1 if report.lost or unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
