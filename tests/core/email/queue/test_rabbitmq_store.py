"""What RabbitMQ keeps."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dramatiq
import pytest
from support.patience import PATIENCE
from support.prepared import make_outgoing
from support.rabbitmq import RabbitmqServer

from openviper.conf import override
from openviper.core.email import QueueUnavailable
from openviper.core.email.message.storage import decode, encode, join
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.found import Erased, Wanted
from openviper.core.email.queue.job import ClaimedJob, Progress
from openviper.core.email.queue.rabbitmq_store import LONGEST_HOP, RabbitmqJobStore
from openviper.tasks.encoder import Sealed


@pytest.fixture
def store(rabbitmq_server: RabbitmqServer) -> Iterator[RabbitmqJobStore]:
    with override(TASKS=rabbitmq_server.tasks()):
        service = queue_service()
        assert service is not None
        assert isinstance(service.store, RabbitmqJobStore)
        yield service.store
        close_queue()
    rabbitmq_server.restore()


def claimed_job(number: int = 0) -> ClaimedJob:
    token = Sealed(b"\x00\x00\x00\x02{}")
    return ClaimedJob(f"k{number}", f"<{number}@example.com>", Progress(time.time()), None, token=token)


def test_no_delay_exceeds_a_quarter_of_an_hour(store: RabbitmqJobStore, rabbitmq_server: RabbitmqServer) -> None:
    """A message that is due later goes on in hops, and is not sent before."""
    due = datetime.now(UTC) + timedelta(hours=5)
    one = claimed_job()
    store.retry(one, one.progress, delay=5 * 3600)
    with rabbitmq_server.connect() as connection:
        _, _, body = connection.channel().basic_get("emails.DQ", auto_ack=True)
    message = dramatiq.Message.decode(body)
    assert message.options["eta"] <= (time.time() + LONGEST_HOP) * 1000
    assert store.claim(*message.args) is None, "it is not due, so it goes on"
    with rabbitmq_server.connect() as connection:
        _, _, retry = connection.channel().basic_get("emails.DQ", auto_ack=True)
    assert dramatiq.Message.decode(retry).args[1] == message.args[1]
    assert f"{due.timestamp():.0f}"[:-2] in str(bytes(message.args[1]))


def test_a_list_of_failed_messages_ends_after_the_oldest_thousand_and_all_can_be_purged(
    store: RabbitmqJobStore,
) -> None:
    for number in range(1002):
        one = claimed_job(number)
        store.fail(one, one.progress, "550 no", keep=3600, uncertain=False)
    for _ in range(2):
        assert [job.message_id for job in store.failed(5000)] == [f"<{number}@example.com>" for number in range(1000)]
    assert store.stats().failed == 1002
    assert store.purge_failed(frozenset({"<1001@example.com>"})) == 1, "beyond the first thousand, too"
    assert store.purge_failed(frozenset({"<7@example.com>"})) == 1


def test_failed_messages_to_which_a_sender_gave_one_message_id_are_all_kept(store: RabbitmqJobStore) -> None:
    """They share the job's key with each other, as copies of one message do."""
    first = claimed_job()
    second = first._replace(token=Sealed(b'\x00\x00\x00\x0b{"other":1}'))
    for job in (first, second, second):
        store.fail(job, job.progress, "550 no", keep=3600, uncertain=False)
    assert len(store.failed(10)) == 2
    assert store.purge_failed(None) == 2


async def test_an_address_is_found_and_erased_in_what_has_failed(
    store: RabbitmqJobStore, rabbitmq_server: RabbitmqServer
) -> None:
    """A message for Ann alone goes; of one for both, Ben's part stays and can be retried."""
    ann, ben = "Ann@example.test", "ben@example.test"
    refused = Progress(time.time(), 1, refused={ann: f"550 {ann} unknown", ben: "550 no"})
    for recipients in ((ann,), (ann, ben), (ben,)):
        made = await make_outgoing(*recipients)
        payload = encode(made.prepared)
        job = claimed_job()._replace(message_id=made.message_id, token=Sealed(join(payload)), payload=payload)
        await asyncio.to_thread(store.fail, job, refused, f"550 {ann} unknown", keep=600, uncertain=False)
    wanted = Wanted(address=ann.lower())
    assert [mail.state for mail in await asyncio.to_thread(store.find, wanted)] == ["failed", "failed"]
    assert await asyncio.to_thread(store.erase, ann.lower()) == Erased(removed=1, changed=1)
    assert await asyncio.to_thread(store.find, wanted) == []
    shared, alone = await asyncio.to_thread(store.failed, 10)
    assert shared.payload is not None
    assert (shared.payload.summary()["To"], shared.reason) == (ben, "550 (erased) unknown")
    assert (shared.progress.refused, shared.progress.attempts) == ({ben: "550 no"}, 1)
    assert alone.head is not None
    assert await asyncio.to_thread(store.retry_failed, frozenset([shared.message_id])) == 1
    with rabbitmq_server.connect() as connection:
        _, _, body = connection.channel().basic_get("emails", auto_ack=True)
    again = await asyncio.to_thread(store.claim, *dramatiq.Message.decode(body).args)
    assert again is not None
    assert again.payload is not None
    assert decode(again.payload).recipients == (ben,)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", {"message_id": 1}, {"due_at": "soon"}, {"progress": None}])
def test_a_damaged_message_is_told_as_such_by_the_id_of_its_key(
    store: RabbitmqJobStore, damage: bytes | dict[str, object]
) -> None:
    progress = Progress(time.time()).to_json()
    about = {"message_id": "<1@example.com>", "progress": progress, "due_at": None}
    text = damage if isinstance(damage, bytes) else json.dumps({**about, **damage}).encode()
    taken = store.claim("1@example.com/0123", Sealed(text), claimed_job().token)
    assert taken is not None
    assert taken.problem
    store.fail(taken, taken.progress, "cannot be read", keep=60, uncertain=False)
    assert [job.message_id for job in store.failed(10)] == ["<1@example.com>"]


def test_a_connection_that_is_given_up_while_it_is_opened_does_not_stay(
    store: RabbitmqJobStore, rabbitmq_server: RabbitmqServer
) -> None:
    rabbitmq_server.pause()
    message = store._publisher.publish("emails", b"body")
    time.sleep(0.2)
    store._publisher.drop()
    rabbitmq_server.resume()
    with pytest.raises(QueueUnavailable):
        message.result(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while any(thread.name == "openviper-publisher" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_refused_connection_is_told_as_such(store: RabbitmqJobStore, rabbitmq_server: RabbitmqServer) -> None:
    rabbitmq_server.stop()
    # The connection that was open may end with the message in it.
    with pytest.raises(QueueUnavailable, match=r"refused|ended"):
        store._publisher.publish("emails", b"body").result(PATIENCE)
    with pytest.raises(QueueUnavailable, match="refused"):
        store.probe()
