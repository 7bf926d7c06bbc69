"""The version before this one, from the history, and this one read and deliver each other's queued mail."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.earlier_version import EarlierVersion, earlier_version
from support.patience import PATIENCE
from support.workers import Worker

from openviper.core.email import AttachmentData, EmailMessageData, EmailSettings
from openviper.core.email.message import check_message
from openviper.core.email.message.serialiser import serialise, serialise_message
from openviper.core.email.message.storage import decode, encode, join, split
from openviper.core.email.queue import enqueue_email_job, queue_service
from openviper.core.email.queue.job import JobStore, Progress

__all__ = ["earlier_version"]

READ_AND_WRITE = """
import json, sys
from openviper.core.email.payload import decode, encode, join, split
from openviper.core.email.queue.job import Progress

given = json.load(sys.stdin)
message = decode(split(bytes.fromhex(given["payload"])))
progress = [Progress.from_json(text) for text in given["progress"]]
print(json.dumps({
    "payload": join(encode(message)).hex(),
    "progress": [one.to_json() for one in progress],
    "next": [one.left for one in progress],
}))
"""

ENQUEUE = """
import asyncio, json, os, sys
from openviper.core.email import EmailMessageData
from openviper.core.email.queue import enqueue_email_job

sys.path.insert(0, sys.argv[1])
os.environ["OPENVIPER_SETTINGS_MODULE"] = "settings"

async def main():
    for to, subject in json.load(sys.stdin):
        await enqueue_email_job(EmailMessageData(to, subject, text="x" * 200))

asyncio.run(main())
"""


def test_the_version_before_reads_and_writes_the_same_stored_form(earlier_version: EarlierVersion) -> None:
    """In a process of that version; whom it may have reached already it leaves alone."""
    data = EmailMessageData(
        ["Ärzte <a@exämple.com>"], "Grüße", text="Hi", html="<p>Hi</p>", bcc=["b@example.com"],
        attachments=[AttachmentData("a.bin", bytes(range(256)))], headers={"X-Order": "7"},
    )  # fmt: skip
    message = check_message(data, default_sender="shop@example.com")
    progress = [
        Progress(1.5),
        Progress(1.5, 3, ("c@x.test",), {"d@x.test": "550 no"}, 9.0, True, {"b@x.test": "451 cut"}),
    ]
    given = {"payload": join(encode(message)).hex(), "progress": [one.to_json() for one in progress]}
    answer = json.loads(earlier_version.run(READ_AND_WRITE, given=json.dumps(given)))
    again = decode(split(bytes.fromhex(answer["payload"])))
    assert again == message
    assert serialise(again) == serialise(message)
    assert [Progress.from_json(text) for text in answer["progress"]] == progress
    assert answer["next"] == [None, ["c@x.test"]]


class SideBySide:
    """Both versions on one queue: what they enqueue, and from which of their workers it arrives."""

    def __init__(self, scene: Any, earlier: EarlierVersion) -> None:
        self.scene = scene
        self.earlier = earlier
        self.expected: set[str] = set()

    @property
    def store(self) -> JobStore:
        service = queue_service()
        assert service is not None
        return service.store

    def worker(self, version: str) -> Worker:
        """A worker that tells the mail server which version it is."""
        env = {"EMAIL_LOCAL_HOSTNAME": f"{version}.example.com"}
        worker: Worker = self.scene.worker(env=env | (self.earlier.env if version == "earlier" else {}))
        return worker

    async def enqueue(self, version: str, name: str, count: int) -> None:
        """Queue messages to two recipients each. Of every other message the second is refused once, for now."""
        mail = []
        for number in range(count):
            to = [f"{name}-{number}-{person}@example.com" for person in ("a", "b")]
            if number % 2:
                self.scene.smtp.refuse(to[1], 451, nth=1)
            mail.append((to, f"{name} {number}"))
            self.expected |= {*to}
        if version == "earlier":
            folder = str(self.scene.folder)
            await asyncio.to_thread(self.earlier.run, ENQUEUE, folder, given=json.dumps(mail))
        else:
            for to, subject in mail:
                await enqueue_email_job(EmailMessageData(to, subject, text="x" * 200))

    async def all_arrived(self) -> None:
        """Wait for the expected recipients; nothing came twice, and nothing failed."""
        await until(lambda: self.arrivals().keys() >= self.expected)
        await until(self._idle)
        arrivals = self.arrivals()
        assert arrivals.keys() == self.expected
        assert set(arrivals.values()) == {1}, [one for one, times in arrivals.items() if times > 1]
        assert await asyncio.to_thread(self.store.failed, 10) == []

    def _idle(self) -> bool:
        stats = self.store.stats()
        return not stats.waiting and not stats.later

    def arrivals(self) -> Counter[str]:
        return Counter(one for message in tuple(self.scene.smtp.messages) for one in message.recipients)

    def carried(self) -> Counter[tuple[str, str]]:
        """Count deliveries by worker and by the first word of the recipient's name."""
        commands = tuple(self.scene.smtp.commands)
        names = {one.connection: one.line.split()[-1].partition(".")[0] for one in commands if one.verb == "EHLO"}
        messages = tuple(self.scene.smtp.messages)
        return Counter((names[message.connection], message.recipients[0].split("-")[0]) for message in messages)


async def until(condition: Callable[[], object], limit: float = 4 * PATIENCE) -> None:
    deadline = time.monotonic() + limit
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


@pytest.mark.long
async def test_workers_of_both_versions_deliver_the_mail_of_both(scene: Any, earlier_version: EarlierVersion) -> None:
    """First each worker has the mail of the other version alone, then both workers have both."""
    both = SideBySide(scene, earlier_version)
    await both.enqueue("present", "present1", 20)
    with both.worker("earlier"):
        await both.all_arrived()
    await both.enqueue("earlier", "earlier1", 20)
    with both.worker("present"):
        await both.all_arrived()
    assert both.carried().keys() == {("earlier", "present1"), ("present", "earlier1")}
    with both.worker("earlier"), both.worker("present"):
        await asyncio.gather(both.enqueue("earlier", "earlier2", 100), both.enqueue("present", "present2", 100))
        await both.all_arrived()
    print(scene.broker.kind, f"{len(both.expected)} recipients, each once, none failed:", dict(both.carried()))


@pytest.mark.long
async def test_the_earlier_worker_keeps_what_is_new_as_failed_and_the_present_one_delivers_it(
    scene: Any, earlier_version: EarlierVersion
) -> None:
    """So where a new feature is used before the workers are deployed, its mail waits for them."""
    both = SideBySide(scene, earlier_version)
    service = queue_service()
    assert service is not None
    prepared = check_message(EmailMessageData(["a@example.com"], "New", text="Hi"), default_sender="shop@example.com")
    message = await serialise_message(prepared._replace(extra={"trace": "00-ab-01"}), max_message_bytes=10**6)
    await service.enqueue(message, EmailSettings.from_settings())
    with both.worker("earlier"):
        await until(lambda: both.store.failed(10))
    (job,) = await asyncio.to_thread(both.store.failed, 10)
    assert "its version is '2'" in job.reason
    with both.worker("present"):
        assert await asyncio.to_thread(both.store.retry_failed, None) == 1
        (arrived,) = await scene.smtp.arrive(1)
    assert arrived.recipients == ["a@example.com"]
