"""What a later version has queued is kept and retried on either broker, and what travels with a message survives."""

import asyncio
import json
import time
from typing import Any

from support.patience import PATIENCE
from support.workers import viperctl

from openviper.core.email import AttachmentData, EmailMessageData
from openviper.core.email.message import PreparedMessage, check_message
from openviper.core.email.message.storage import Payload, encode
from openviper.core.email.queue import queue_service
from openviper.core.email.queue.job import FailedJob, JobStore, NewJob, Progress, job_key


def store() -> JobStore:
    service = queue_service()
    assert service is not None
    return service.store


def message(name: str, **more: Any) -> PreparedMessage:
    data = EmailMessageData(
        [f"{name}@example.com"], name, text="", attachments=[AttachmentData("a.bin", b"x" * 70_000)]
    )
    return check_message(data, default_sender="shop@example.com")._replace(**more)


def enqueue(prepared: PreparedMessage, payload: Payload, progress: Progress) -> str:
    key = job_key(prepared.message_id, prepared.recipients)
    job = NewJob(key, prepared.message_id, payload, progress, keep=3600)
    store().add(job, deadline=time.monotonic() + PATIENCE)
    return prepared.message_id


def enqueue_newer() -> dict[str, str]:
    """Queue what only later versions can deliver; return the reason expected for each Message-ID."""
    required, version, progress = message("required", must={"zstd": True}), message("version"), message("progress")
    payload = encode(version)
    later = {**json.loads(payload.head), "version": 3, "sizes": {"zstd": []}}
    unread: dict[str, Any] = {"version": 3, "since": time.time(), "attempts": 0, "expires_at": None, "lanes": []}
    return {
        enqueue(required, encode(required), Progress(time.time())): "it requires 'zstd'",
        enqueue(version, Payload(json.dumps(later).encode(), payload.parts), Progress(time.time())): "its version is 3",
        enqueue(progress, encode(progress), Progress(time.time(), unread=unread)): "the version of its progress is 3",
    }


async def failed(count: int) -> list[FailedJob]:
    deadline = time.monotonic() + PATIENCE
    while len(found := await asyncio.to_thread(store().failed, 10)) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    return found


async def test_what_only_a_later_version_can_deliver_is_retried_and_stops_nobody(scene: Any) -> None:
    expected = await asyncio.to_thread(enqueue_newer)
    known = message("known")
    await asyncio.to_thread(enqueue, known, encode(known), Progress(time.time()))
    with scene.worker(threads=1) as worker:
        (arrived,) = await scene.smtp.arrive(1)
        for message_id, reason in expected.items():
            await asyncio.to_thread(
                worker.wait_for, f"message {message_id} waits for a newer worker: {reason}", times=2
            )
    assert arrived.recipients == ["known@example.com"]
    assert await asyncio.to_thread(store().failed, 10) == []
    assert len(scene.smtp.messages) == 1
    assert "example.com" not in worker.output.replace("@example.com>", "")


async def test_after_retry_max_age_it_is_kept_as_failed_and_can_still_be_retried(scene: Any) -> None:
    settings = scene.folder / "settings.py"
    settings.write_text(f"{settings.read_text()}\nEMAIL |= {{'retry_max_age': 1}}\n")
    expected = await asyncio.to_thread(enqueue_newer)
    with scene.worker():
        found = await failed(3)
        for job in found:
            assert job.reason.startswith("given up after"), job.reason
            assert expected[job.message_id] in job.reason
        assert {job.message_id for job in found} == expected.keys()
        retried = await asyncio.to_thread(viperctl, "email", "failed", "retry", "--all", "--project", scene.folder)
        assert retried.stdout == "3 queued again\n"
        again = await failed(3)
    assert {job.message_id: job.progress.unread and job.progress.unread["lanes"] for job in again} == {
        message_id: [] if "progress" in reason else None for message_id, reason in expected.items()
    }
    assert scene.smtp.messages == []


async def test_what_travels_with_a_message_survives_retries_and_the_failed_store(scene: Any) -> None:
    """A worker ignores what it does not know of ``extra``, and keeps it."""
    scene.smtp.refuse("extra@example.com", 451, nth=1)
    scene.smtp.refuse("extra@example.com", 550, nth=2)
    prepared = message("extra", extra={"trace": "00-ab-01", "moods": [1]})
    await asyncio.to_thread(
        enqueue,
        prepared,
        encode(prepared),
        Progress(time.time(), extra={"ref": "7", "protocol": "C: MAIL\nS: 550 \x1b[1m"}),
    )
    with scene.worker():
        (job,) = await failed(1)
        assert job.payload is not None
        assert json.loads(job.payload.head)["extra"] == {"trace": "00-ab-01", "moods": [1]}
        assert job.progress.extra["ref"] == "7"
        assert list(job.progress.refused) == ["extra@example.com"]
        shown = await asyncio.to_thread(viperctl, "email", "failed", "show", job.message_id, "--project", scene.folder)
        assert "Subject     extra" in shown.stdout
        assert "Protocol    C: MAIL\n            S: 550 " in shown.stdout
        assert "\x1b" not in shown.stdout
        assert await asyncio.to_thread(store().retry_failed, None) == 1
        (arrived,) = await scene.smtp.arrive(1)
    assert arrived.recipients == ["extra@example.com"]
    assert b"00-ab-01" not in arrived.content
