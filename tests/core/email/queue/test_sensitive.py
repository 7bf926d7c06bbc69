"""What was sent with ``sensitive=True`` is delivered like other mail, and keeps no content once it is given up."""

import asyncio
import time
from typing import Any

import pytest
from support.brokers import until_available
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.workers import viperctl

from openviper.conf import override
from openviper.core.email import EmailMessageData, send_email, send_many, submit_email
from openviper.core.email.message import check_message
from openviper.core.email.message.storage import encode, join
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import FailedJob, JobStore, NewJob, Progress, job_key
from openviper.core.email.queue.rabbitmq_failed import encode as encode_ticket
from openviper.tasks.encoder import Sealed

SECRET = "https://shop.example/reset?token=4711"


def store() -> JobStore:
    service = queue_service()
    assert service is not None
    return service.store


def secret(recipient: str = "ann@example.com", *, large: bool = False) -> dict[str, Any]:
    """A message with the secret in each part; a large one has parts that Redis keeps apart from the message."""
    padding = "x" * 70_000 if large else ""
    return {
        "recipients": recipient,
        "subject": "Reset your password",
        "text": f"{SECRET} {padding}",
        "html": f"<p>{SECRET}</p>{padding}",
        "attachments": [("reset.txt", f"{SECRET}{padding}".encode())],
        "sensitive": True,
    }


async def failed(count: int) -> list[FailedJob]:
    deadline = time.monotonic() + PATIENCE
    while len(found := await asyncio.to_thread(store().failed, 10)) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    return found


def kept(scene: Any) -> bytes:
    """All that the broker keeps of mail, without taking anything away."""
    if scene.tasks["broker"] == "redis":
        client = scene.broker.client()
        values = []
        for key in client.scan_iter("*:mail:*"):
            kind = client.type(key)
            if kind == b"hash":
                values += [part for pair in client.hgetall(key).items() for part in pair]
            elif kind == b"string":
                values.append(client.get(key))
        return b"\n".join(values)
    bodies = []
    with scene.broker.connect() as connection:
        for queue in ("emails", "emails.DQ", "emails.XQ", "emails.failed"):
            channel = connection.channel()
            while (got := channel.basic_get(queue))[0] is not None:
                bodies.append(got[2])
            channel.close()  # which gives them back
    return b"\n".join(bodies)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_a_refused_message_keeps_its_head_and_no_content(scene: Any, large: bool) -> None:
    scene.smtp.refuse("ann@example.com", 550)
    receipt = await submit_email(**secret(large=large))
    with scene.worker():
        (job,) = await failed(1)
    assert job.content_dropped
    found = await asyncio.to_thread(kept, scene)
    assert b"Reset your password" in found
    assert SECRET.encode() not in found
    listed = await asyncio.to_thread(viperctl, "email", "failed", "list", "--project", scene.folder)
    assert listed.stdout.endswith("  1 attempt  content not kept\n")
    shown = await asyncio.to_thread(viperctl, "email", "failed", "show", receipt.message_id, "--project", scene.folder)
    assert "Content     not kept, because it was sent with sensitive=True: it cannot be retried\n" in shown.stdout
    assert "Subject     Reset your password\n" in shown.stdout


async def test_a_retry_leaves_it_where_it_is_and_names_the_remedy(scene: Any) -> None:
    scene.smtp.refuse("ann@example.com", 550)
    scene.smtp.refuse("bob@example.com", 550, nth=1)
    await send_email(**secret())
    await send_email("bob@example.com", "Hello", text="Hi")
    with scene.worker():
        await failed(2)
        answer = await asyncio.to_thread(viperctl, "email", "failed", "retry", "--all", "--project", scene.folder)
        await scene.smtp.arrive(1)
    assert answer.stdout == "1 queued again\n"
    assert answer.returncode == 1
    assert answer.stderr == (
        "Error: 1 cannot be queued again: sent with sensitive=True, so the content was not kept; send again from "
        "your application (with another key, if it had one), and remove with `viperctl email failed purge`\n"
    )
    assert [message.recipients for message in scene.smtp.messages] == [["bob@example.com"]]
    purged = await asyncio.to_thread(viperctl, "email", "failed", "purge", "--all", "--project", scene.folder)
    assert purged.stdout == "1 deleted\n"
    assert await asyncio.to_thread(store().failed, 10) == []


async def test_it_is_whole_through_its_retries_and_gone_after_the_delivery(scene: Any) -> None:
    scene.smtp.fault("MAIL", 451, nth=1)
    await send_email(**secret(large=True))
    messages: list[Any] = [
        EmailMessageData("bob@example.com", "Reset", text=SECRET, sensitive=True),
        secret("eve@example.com"),
    ]
    assert all([bool(receipt) async for receipt in send_many(messages, background=True)])
    with scene.worker():
        arrived = await scene.smtp.arrive(3)
        deadline = time.monotonic() + PATIENCE
        while SECRET.encode() in await asyncio.to_thread(kept, scene):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    assert {message.recipients[0] for message in arrived} == {"ann@example.com", "bob@example.com", "eve@example.com"}
    for message in arrived:
        body = message.parse().get_body(("plain",))
        assert body is not None
        assert SECRET in body.get_content()


async def test_what_is_given_up_without_an_attempt_keeps_no_content_either(scene: Any) -> None:
    data = EmailMessageData("ann@example.com", "Reset", text=SECRET, sensitive=True, sender="shop@example.com")
    prepared = check_message(data, default_sender=None)
    key = job_key(prepared.message_id, prepared.recipients)
    progress = Progress(time.time(), expires_at=time.time() - 1)
    job = NewJob(key, prepared.message_id, encode(prepared), progress, keep=3600)
    await asyncio.to_thread(lambda: store().add(job, deadline=time.monotonic() + PATIENCE))
    with scene.worker():
        (found,) = await failed(1)
    assert found.content_dropped
    assert SECRET.encode() not in await asyncio.to_thread(kept, scene)
    assert scene.smtp.messages == []


async def test_the_same_message_can_be_sent_anew(scene: Any) -> None:
    scene.smtp.refuse("ann@example.com", 550, nth=1)
    anew = {**secret(large=True), "headers": {"Message-ID": "<reset-7@example.com>"}}
    await send_email(**anew)
    with scene.worker():
        await failed(1)
        await send_email(**anew)
        (arrived,) = await scene.smtp.arrive(1)
    assert [part.get_filename() for part in arrived.parse().iter_attachments()] == ["reset.txt"]


def test_what_rabbitmq_gave_up_itself_loses_its_content_when_it_is_read(rabbitmq_server: RabbitmqServer) -> None:
    data = EmailMessageData("ann@example.com", "Reset", text=SECRET, sensitive=True, sender="shop@example.com")
    prepared = check_message(data, default_sender=None)
    key = job_key(prepared.message_id, prepared.recipients)
    details = {"message_id": prepared.message_id, "progress": Progress(time.time()).to_json(), "due_at": None}
    with override(TASKS=rabbitmq_server.tasks()):
        until_available()
        with rabbitmq_server.connect() as connection:
            body = encode_ticket(key, details, Sealed(join(encode(prepared))))
            connection.channel().basic_publish("", "emails.XQ", body)
        (job,) = store().failed(10)
        assert store().retry_failed(None) == 0
        close_queue()
    assert job.content_dropped
    with rabbitmq_server.connect() as connection:
        left = [connection.channel().basic_get(queue)[2] for queue in ("emails.XQ", "emails.failed")]
    assert left[0] is None
    assert left[1] is not None
    assert SECRET.encode() not in left[1]
