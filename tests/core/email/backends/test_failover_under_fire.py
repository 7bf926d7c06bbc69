"""Failover under fire: the first server stops again and again while mail is sent, and nothing is lost.

Each stop happens while the first server receives mail. Only a message whose delivery was reported uncertain may be
missing in the end; how many that were is printed (``pytest -s``).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server, until_available
from support.patience import PATIENCE
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import submit_email
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.errors import DeliveryError
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.settings import EmailSettings

__all__ = ["redis_server"]

AT_ONCE = 8
RETRY_PERIOD = 0.05
_PAUSE = 0.05  # seconds of each sender between two messages, so that a long run has about as many as asked for
RUNS = [
    pytest.param(200, 4, id="short"),
    pytest.param(2000, 20, id="long", marks=pytest.mark.long),
]


class Fire:
    """Two servers, of which the first is stopped, and the messages that arrived at either, by their numbers."""

    def __init__(self, first: SmtpServer, backup: SmtpServer) -> None:
        self.first, self.backup = first, backup
        self.uncertain: set[int] = set()
        self._seen: dict[SmtpServer, int] = {first: 0, backup: 0}
        self._arrived: Counter[int] = Counter()

    def email(self, **more: Any) -> dict[str, Any]:
        place = {"host": self.backup.host, "port": self.backup.port}
        own = self.first.settings(default_sender="shop@example.com", retry_period=RETRY_PERIOD, failover=["backup"])
        return {**own, "mailers": {"backup": place}, **more}

    @property
    def arrived(self) -> Counter[int]:
        """Count how often each message arrived."""
        for server in self._seen:
            messages = server.messages[self._seen[server] :]
            self._seen[server] += len(messages)
            self._arrived.update(int(str(message.parse()["Subject"])) for message in messages)
        return self._arrived

    async def burn(self, sends: int, stops: int, send: Callable[[int], Awaitable[None]]) -> int:
        """Send at least ``sends`` messages, and stop the first server ``stops`` times meanwhile; return how many.

        Each stop waits until the first server has received some since it was started again, and the backup some since.
        """
        numbers = count()
        sent = 0
        stopping = True

        async def work() -> None:
            nonlocal sent
            while stopping or sent < sends:
                sent += 1
                await send(next(numbers))
                if stopping:
                    await asyncio.sleep(_PAUSE)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
            for _ in range(stops):
                await self.first.arrive(len(self.first.messages) + AT_ONCE)
                await asyncio.to_thread(self.first.stop)
                await self.backup.arrive(len(self.backup.messages) + AT_ONCE)
                await asyncio.to_thread(self.first.__enter__)
            stopping = False
        return sent

    def check(self, mode: str, sends: int, stops: int) -> None:
        """Print the shares, and check that no message is missing of which the sender was not told."""
        arrived = self.arrived
        missing = set(range(sends)) - arrived.keys()
        twice = sum(times > 1 for times in arrived.values())
        by_backup = len(self.backup.messages)
        print(
            f"{mode}: {sends} messages, {stops} stops: {sends - len(missing)} arrived, {by_backup} of them by the "
            f"backup, {len(self.uncertain)} reported uncertain ({len(missing & self.uncertain)} missing), {twice} twice"
        )
        assert missing <= self.uncertain
        assert by_backup >= stops, "the backup took over after each stop"
        assert len(self.first.messages) > stops, "and the first server was used again"


@pytest.mark.parametrize(("sends", "stops"), RUNS)
async def test_inline_mail_is_delivered_or_reported_uncertain(sends: int, stops: int) -> None:
    with SmtpServer() as first, SmtpServer() as backup:
        fire = Fire(first, backup)
        mailer = Mailer(EmailSettings(**fire.email()))

        async def send(number: int) -> None:
            receipt = await submit_email("a@example.com", str(number), "Hi", background=False, fail_silently=True)
            if receipt.error is not None:
                assert isinstance(receipt.error, DeliveryError)
                assert receipt.error.uncertain, receipt.error
                fire.uncertain.add(number)

        with using_mailer(mailer):
            sent = await fire.burn(sends, stops, send)
        await mailer.aclose()
        fire.check("inline", sent, stops)


@pytest.mark.parametrize(("sends", "stops"), RUNS)
async def test_deferred_mail_arrives(sends: int, stops: int) -> None:
    """An uncertain delivery is attempted again, so that none is missing; some arrive twice."""
    with SmtpServer() as first, SmtpServer() as backup:
        fire = Fire(first, backup)
        mailer = Mailer(EmailSettings(**fire.email(dispatcher_messages=10 * sends)))

        async def send(number: int) -> None:
            outbox = RequestOutbox()
            with collecting(outbox):
                assert (await submit_email("a@example.com", str(number), "Hi")).mode == "deferred"
            (delivery,) = outbox.flush()
            await delivery.done

        with using_mailer(mailer):
            sent = await fire.burn(sends, stops, send)
        await mailer.aclose()
        fire.check("deferred", sent, stops)


@pytest.mark.parametrize(("sends", "stops"), RUNS)
async def test_queued_mail_is_delivered_or_kept_as_uncertain(
    sends: int, stops: int, redis_server: RedisServer, tmp_path: Path
) -> None:
    """With ``on_uncertain = "hold"`` the queue keeps as failed what may have been delivered."""
    with SmtpServer() as first, SmtpServer() as backup:
        fire = Fire(first, backup)
        email = fire.email(on_uncertain="hold")
        project = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
        with override(TASKS=redis_server.tasks(), EMAIL=email):
            await asyncio.to_thread(until_available)
            worker = Worker(project, threads=AT_ONCE)
            await asyncio.to_thread(worker.start)
            numbers: dict[str, int] = {}

            async def send(number: int) -> None:
                receipt = await submit_email("a@example.com", str(number), "Hi")
                assert receipt.mode == "queued"
                numbers[receipt.message_id] = number

            sent = await fire.burn(sends, stops, send)
            service = queue_service()
            assert service is not None
            failed: list[Any] = []
            async with asyncio.timeout(2 * PATIENCE):
                while len(fire.arrived.keys() | fire.uncertain) < sent:
                    await asyncio.sleep(0.3)
                    failed = await asyncio.to_thread(service.store.failed, sent)
                    fire.uncertain = {numbers[job.message_id] for job in failed}
            assert all(job.uncertain for job in failed), [job.reason for job in failed]
            assert await asyncio.to_thread(worker.terminate) == 0
            await asyncio.to_thread(close_queue)
        fire.check("queued", sent, stops)
