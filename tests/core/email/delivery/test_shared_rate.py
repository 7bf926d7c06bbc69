"""A rate limit that processes share through a real Redis, counted at the mail server."""

import asyncio
import itertools
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import viperctl, write_project

from openviper.conf import override
from openviper.core.email import DeliveryError, EmailSettings, send_many, submit_email
from openviper.core.email.backends.rate_limit import SharedRateLimiter
from openviper.core.email.delivery.shared_rate import SharedRate, shared_rate
from openviper.core.email.delivery.transport import BackendTransport
from openviper.core.email.settings.units import Rate
from openviper.tasks import TaskSettings

__all__ = ["redis_server"]

_SEND = """
import asyncio, sys
from openviper.core.email import submit_email

async def main(name, count):
    await submit_email("first@example.com", f"warm {name}", "", background=False)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    sends = (
        submit_email("to@example.com", f"{name} {number}", "", background=False, mailer=sys.argv[3])
        for number in range(count)
    )
    receipts = await asyncio.gather(*sends)
    assert all(receipts), receipts

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


def sent_together(project: Path, smtp: SmtpServer, processes: int, count: int, mailer: str) -> list[str]:
    """Send ``count`` messages from each process, which begin together; return their subjects as they arrived."""
    with ExitStack() as stack:
        senders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _SEND, str(number), str(count), mailer],
                    cwd=project,
                    env={**os.environ, "OPENVIPER_SETTINGS_MODULE": "settings", "PYTHONPATH": str(project)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(processes)
        ]
        for sender in senders:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "ready\n"
        smtp.wait_for(processes)
        smtp.messages.clear()
        for sender in senders:
            assert sender.stdin is not None
            sender.stdin.write("\n")
            sender.stdin.flush()
        smtp.wait_for(processes * count)
        assert [sender.wait() for sender in senders] == [0] * processes
    return [message.parse()["Subject"] for message in smtp.messages]


def most_within(smtp: SmtpServer, seconds: float) -> int:
    """Return how many of the messages arrived within the fullest window of that length."""
    times = sorted(message.at for message in smtp.messages)
    return max(sum(begin <= each < begin + seconds for each in times) for begin in times)


@pytest.mark.parametrize(("mailer", "rate"), [("default", "20/second shared"), ("bulk", "1200 per minute shared")])
def test_processes_together_keep_to_a_shared_rate(
    smtp: SmtpServer, redis_server: RedisServer, tmp_path: Path, mailer: str, rate: str
) -> None:
    settings = smtp.settings(mailers={"bulk": {"host": smtp.host, "port": smtp.port, "use_tls": False}})
    owner = settings if mailer == "default" else settings["mailers"]["bulk"]
    owner["rate_limit"] = rate
    project = write_project(tmp_path, tasks=redis_server.tasks(), email=settings)
    subjects = sent_together(project, smtp, 4, 20, mailer)
    assert sorted(subjects) == sorted(f"{name} {number}" for name in range(4) for number in range(20))
    for seconds in (0.25, 0.5, 1.0, 2.0):
        assert most_within(smtp, seconds) <= 20 * (seconds + 1), f"in {seconds} s"
    # In turns: no process waits until another one is through.
    assert set(Counter(subject.split()[0] for subject in subjects[:60])) == {"0", "1", "2", "3"}


def limiter_settings(smtp: SmtpServer, rate: str, **more: Any) -> dict[str, Any]:
    return smtp.settings(rate_limit=rate, default_sender="shop@example.com", use_background_worker=False, **more)


async def test_a_process_serves_its_senders_in_their_order(smtp: SmtpServer, redis_server: RedisServer) -> None:
    with override(TASKS=redis_server.tasks(), EMAIL=limiter_settings(smtp, "100/second shared", pool_size=1)):
        await asyncio.gather(*(submit_email("to@example.com", str(number), "") for number in range(120)))
    numbers = [int(message.parse()["Subject"]) for message in smtp.messages]
    assert sorted(numbers) == list(range(120))
    # Those whose tokens are due in the same moment may change places.
    assert max(abs(number - place) for place, number in enumerate(numbers)) < 10
    assert most_within(smtp, 0.1) <= 100 * 1.1


async def test_pipelined_messages_keep_to_a_shared_rate(smtp: SmtpServer, redis_server: RedisServer) -> None:
    messages = [{"recipients": f"to{number}@example.com", "subject": "S", "text": "T"} for number in range(60)]
    with override(TASKS=redis_server.tasks(), EMAIL=limiter_settings(smtp, "40/second shared")):
        assert all([receipt async for receipt in send_many(messages, pipeline=True)])
    assert most_within(smtp, 0.2) <= 40 * 1.2


async def test_reservations_follow_each_other_whoever_makes_them(redis_server: RedisServer) -> None:
    with override(TASKS=redis_server.tasks()):
        settings = EmailSettings(
            host="mail.example", username="me", password="x", rate_limit="1/hour shared", use_tls=True
        )
        one, other = shared_rate(settings), shared_rate(settings)
        assert one is not None
        assert one == other
        first = await asyncio.to_thread(one, 2)
        second = await asyncio.to_thread(one, 1)
        none = await asyncio.to_thread(one, 0)
        elsewhere = settings.model_copy(update={"host": "other.example"})
        of_another = await asyncio.to_thread(shared_rate(elsewhere) or one, 1)
    assert (first, of_another) == (0, 0)
    assert 7199 < second <= 7200
    assert 10799 < none <= 10800
    keys = redis_server.client().keys("dramatiq:mail:rate:*")
    assert len(keys) == 2
    assert 10_800_000 < max(map(redis_server.client().pttl, keys)) < 15_000_000


@pytest.mark.parametrize("junk", ["a list", "text", "9e300", "nan"])
async def test_what_no_bucket_wrote_counts_as_none(redis_server: RedisServer, junk: str) -> None:
    bucket = SharedRate(TaskSettings.load(redis_server.tasks()), "account", Rate.parse("1/hour"))
    client = redis_server.client()
    if junk == "a list":
        client.rpush("dramatiq:mail:rate:account", 1)
    else:
        client.set("dramatiq:mail:rate:account", junk)
    assert await asyncio.to_thread(bucket, 1) == 0
    assert await asyncio.to_thread(bucket, 1) > 3599


async def test_mail_keeps_to_the_shared_rate_while_redis_is_full(redis_server: RedisServer) -> None:
    bucket = SharedRate(TaskSettings.load(redis_server.tasks()), "account", Rate.parse("1/hour"))
    redis_server.client().config_set("maxmemory", 1)
    assert [await asyncio.to_thread(bucket, 1) > 3599 for _ in range(2)] == [False, True]


async def test_without_an_answer_of_redis_the_rate_counts_for_the_process(
    smtp: SmtpServer, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openviper.email")

    def told(words: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if words in record.getMessage()]

    with override(TASKS=redis_server.tasks(), EMAIL=limiter_settings(smtp, "50/second shared")):
        await submit_email("to@example.com", "shared", "")
        redis_server.stop()
        await asyncio.sleep(0.6)  # what was reserved is lost by then
        receipts = await asyncio.gather(*(submit_email("to@example.com", "alone", "") for _ in range(30)))
        assert all(receipts)
        (failure,) = told("counts for each process separately")
        assert f'EMAIL["rate_limit"] (50/second shared) of {smtp.host}:{smtp.port}' in failure
        assert "Redis: ConnectionError" in failure
        redis_server.start()
        for number in itertools.count():
            assert number < 1000, "never shared again"
            await submit_email("to@example.com", "again", "")
            if told("is shared by all processes again"):
                break
            await asyncio.sleep(0.1)
    assert len(told("counts for each process separately")) == 1
    assert len(told("is shared by all processes again")) == 1


async def test_a_cancelled_sender_keeps_nobody_waiting(smtp: SmtpServer, redis_server: RedisServer) -> None:
    with override(TASKS=redis_server.tasks(), EMAIL=limiter_settings(smtp, "5/second shared")):
        sends = [asyncio.create_task(submit_email("to@example.com", str(number), "")) for number in range(12)]
        await smtp.arrive(1)
        for send in sends[3:11]:
            send.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        await submit_email("to@example.com", "later", "")
    subjects = [message.parse()["Subject"] for message in smtp.messages]
    assert [subject for subject in subjects if subject in {"0", "11", "later"}] == ["0", "11", "later"]


async def test_unused_tokens_of_a_share_are_lost(redis_server: RedisServer) -> None:
    asked: list[int] = []
    bucket = SharedRate(TaskSettings.load(redis_server.tasks()), "x", Rate.parse("200/second"))

    def reserve(count: int) -> float:
        asked.append(count)
        return bucket(count)

    limiter = SharedRateLimiter(bucket.rate, reserve, name="the limit")
    await asyncio.gather(*(limiter.wait() for _ in range(40)))
    await limiter.wait()
    assert len(asked) < 10, "a round trip for many senders"
    await asyncio.sleep(1.2)
    before = len(asked)
    await limiter.wait()
    assert len(asked) == before + 1, "what was left of the last share has expired"


async def test_mail_of_two_event_loops_is_counted_together(smtp: SmtpServer, redis_server: RedisServer) -> None:
    async def send() -> None:
        await asyncio.gather(*(submit_email("to@example.com", "S", "") for _ in range(15)))

    with override(TASKS=redis_server.tasks(), EMAIL=limiter_settings(smtp, "20/second shared")):
        await asyncio.gather(send(), asyncio.to_thread(asyncio.run, send()))
    assert len(smtp.messages) == 30
    assert most_within(smtp, 0.25) <= 20 * 1.25


async def test_a_rate_that_cannot_be_shared_is_told_at_the_start(
    smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    shared = {"host": smtp.host, "port": smtp.port, "rate_limit": "5/second shared"}
    settings = EmailSettings(**smtp.settings(mailers={"bulk": shared, "news": {**shared}, "quick": {"timeout": 3}}))
    transport = BackendTransport(settings)
    await transport.open()
    await transport.aclose()
    (record,) = caplog.records
    assert record.getMessage() == (
        'EMAIL["rate_limit"] (5/second shared) counts for each process separately, since TASKS["broker"] is not "redis"'
    )


def test_the_check_says_whether_a_rate_is_shared(smtp: SmtpServer, redis_server: RedisServer, tmp_path: Path) -> None:
    def line(tasks: dict[str, Any], rate: str | None = "5/second shared") -> str:
        project = write_project(tmp_path, tasks=tasks, email=smtp.settings(rate_limit=rate))
        command = ("email", "check", "--project", project, "--from", "a@localhost", "--timeout", "60")
        printed = viperctl(*command).stdout
        return " ".join(next((each for each in printed.splitlines() if " rate " in each), "").split())

    assert line(redis_server.tasks()) == f"ok rate 5/second shared, by redis at 127.0.0.1:{redis_server.port}"
    assert line({}).startswith('warning rate EMAIL["rate_limit"] (5/second shared) counts for each process separately')
    assert line(redis_server.tasks(), "5/second") == ""
    redis_server.stop()
    assert "cannot be asked: Redis: ConnectionError" in line(redis_server.tasks())


async def test_a_limiter_without_an_answer_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def reserve(count: int) -> float:
        raise DeliveryError("no")

    limiter = SharedRateLimiter(Rate.parse("1000/second"), reserve, name="the limit")
    await asyncio.gather(*(limiter.wait() for _ in range(20)))
    assert [record.getMessage() for record in caplog.records] == [
        "the limit counts for each process separately until it can be shared again: no"
    ]
