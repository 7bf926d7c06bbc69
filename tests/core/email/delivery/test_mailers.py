"""Several mailers: each message goes to the server of the mailer that it names, in every delivery mode."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server
from support.patience import PATIENCE
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import MessageEvent, send_email, send_many
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.errors import DeliveryError, InvalidMessage
from openviper.core.email.events import subscribe
from openviper.core.email.message import EmailMessageData, check_message
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import NewJob, Progress
from openviper.core.email.sending import render_email
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox

__all__ = ["redis_server"]


@pytest.fixture
def servers() -> Iterator[tuple[SmtpServer, SmtpServer]]:
    with SmtpServer() as main, SmtpServer() as bulk:
        yield main, bulk


def email(main: SmtpServer, bulk: SmtpServer, **own: Any) -> dict[str, Any]:
    place = {"host": bulk.host, "port": bulk.port, "default_sender": "news@example.com", **own}
    return {**main.settings(default_sender="shop@example.com"), "mailers": {"bulk": place}}


def senders(server: SmtpServer) -> list[str]:
    return [message.sender for message in server.messages]


async def test_each_message_goes_through_the_mailer_that_it_names(servers: tuple[SmtpServer, SmtpServer]) -> None:
    main, bulk = servers
    mailer = Mailer(EmailSettings(**email(main, bulk)))
    await mailer.open()
    assert not bulk.commands  # opened at its first message
    with using_mailer(mailer):
        await send_email("a@example.com", "One", "1", background=False)
        await send_email("a@example.com", "Two", "2", background=False, mailer="bulk")
        await send_email("a@example.com", "Three", "3", background=False, mailer="default")
        many: list[Any] = [
            {"recipients": "a@example.com", "subject": "Four", "text": "4"},
            {"recipients": "a@example.com", "subject": "Five", "text": "5", "mailer": "default"},
            EmailMessageData("a@example.com", "Six", "6"),
        ]
        assert [receipt.error async for receipt in send_many(many, mailer="bulk")] == [None] * 3
        assert (await render_email("Seven", "7", mailer="bulk")).headers["From"] == "news@example.com"
    await mailer.aclose()
    assert senders(main) == ["shop@example.com"] * 3
    assert senders(bulk) == ["news@example.com"] * 3
    assert bulk.commands[-1].verb == "QUIT"


async def test_deferred_mail_goes_through_its_mailer(servers: tuple[SmtpServer, SmtpServer]) -> None:
    main, bulk = servers
    mailer = Mailer(EmailSettings(**email(main, bulk)))
    outbox = RequestOutbox()
    with using_mailer(mailer), collecting(outbox):
        await send_email("a@example.com", "One", "1", mailer="bulk")
    assert not bulk.messages
    outbox.flush()
    await mailer.aclose()
    assert (len(main.messages), len(bulk.messages)) == (0, 1)


async def test_deferred_mail_does_not_wait_for_that_of_another_mailer(servers: tuple[SmtpServer, SmtpServer]) -> None:
    main, bulk = servers
    gate = bulk.hold("body")
    mailer = Mailer(EmailSettings(**email(main, bulk, pool_size=2)))
    outbox = RequestOutbox()
    with using_mailer(mailer), collecting(outbox):
        for number in range(20):
            await send_email("a@example.com", f"Bulk {number}", "Hi", mailer="bulk")
        await send_email("a@example.com", "Reset", "Hi")
    outbox.flush()
    await gate.reached()
    await main.arrive(1)
    assert bulk.connections <= 2
    assert not bulk.messages
    gate.release()
    await mailer.aclose()
    assert [message.parse()["Subject"] for message in main.messages] == ["Reset"]
    assert len(bulk.messages) == 20


async def test_an_unknown_mailer_raises_at_the_call(servers: tuple[SmtpServer, SmtpServer]) -> None:
    mailer = Mailer(EmailSettings(**email(*servers)))
    with using_mailer(mailer):
        for silent in (True, False):
            with pytest.raises(InvalidMessage, match=r"there is no mailer 'bluk'; did you mean 'bulk'\?"):
                await send_email("a@example.com", "One", "1", mailer="bluk", fail_silently=silent)
        with pytest.raises(InvalidMessage, match="there is no mailer 'bluk'"):
            [_ async for _ in send_many([], mailer="bluk")]
    await mailer.aclose()


async def test_events_say_which_mailer(servers: tuple[SmtpServer, SmtpServer]) -> None:
    events: list[MessageEvent] = []
    end = subscribe(events.append)
    mailer = Mailer(EmailSettings(**email(*servers)))
    with using_mailer(mailer):
        await send_email("a@example.com", "One", "1", background=False)
        await send_email("a@example.com", "Two", "2", background=False, mailer="bulk")
    end()
    await mailer.aclose()
    assert [(event.kind, event.mailer, event.via) for event in events] == [
        ("sending", "default", None),
        ("delivered", "default", "default"),
        ("sending", "bulk", None),
        ("delivered", "bulk", "bulk"),
    ]


async def test_labels_become_headers_where_the_mailer_names_them(mailbox: Mailbox) -> None:
    service = {"stream": "news", "tag_header": "X-Tag", "ref_header": "X-Ref", "metadata_header": "X-Data"}
    with override(EMAIL={"default_sender": "s@example.com", "mailers": {"bulk": service}}):
        labels: dict[str, Any] = {"tags": ["a", "b"], "ref": "7", "metadata": {"k": "v"}}
        await send_email("a@example.com", "One", "1", mailer="bulk", **labels)
        await send_email("a@example.com", "Two", "2", mailer="bulk", stream="own", headers={"X-Tag": "own"}, tags=["c"])
        await send_email("a@example.com", "Three", "3", **labels)
    one = mailbox.assert_sent(subject="One", mailer="bulk", headers={"X-Tag": "a, b", "X-Ref": "7"})
    assert one.headers["X-Data"] == '{"k": "v"}'
    assert one.outgoing.prepared.must == {"stream": "news", "mailer": "bulk"}
    two = mailbox.assert_sent(subject="Two", mailer="bulk")
    assert (two.headers, two.outgoing.prepared.must["stream"]) == ({"X-Tag": "own"}, "own")
    assert mailbox.assert_sent(subject="Three", mailer="default").headers == {}
    mailbox.assert_not_sent(subject="Three", mailer="bulk")


def _add_to_the_default_queue() -> None:
    data = EmailMessageData("a@example.com", "One", "1", sender="news@example.com", mailer="bulk")
    message = check_message(data, default_sender=None)
    progress = Progress(time.time())
    service = queue_service()
    assert service is not None
    job = NewJob("1@example.com/0", message.message_id, encode(message), progress, keep=3600)
    assert service.store.add(job, deadline=time.monotonic() + PATIENCE)


async def test_a_worker_keeps_mail_for_a_mailer_that_it_lacks(
    servers: tuple[SmtpServer, SmtpServer], redis_server: RedisServer, tmp_path: Path
) -> None:
    """Mail in the queue that it consumes, for a mailer whose queue it does not know."""
    main, bulk = servers
    settings = email(main, bulk)
    project = write_project(tmp_path / "with", tasks=redis_server.tasks(), email=settings)
    lacking = {**main.settings(), "retry_max_age": 0, "mailers": {"bulky": {}}}
    without = write_project(tmp_path / "without", tasks=redis_server.tasks(), email=lacking)
    with override(TASKS=redis_server.tasks(), EMAIL=settings):
        try:
            await asyncio.to_thread(_add_to_the_default_queue)
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(without)
    await asyncio.to_thread(worker.start)
    await asyncio.to_thread(worker.wait_for, "was not delivered")
    assert await asyncio.to_thread(worker.terminate) == 0
    assert (main.connections, bulk.connections) == (0, 0)
    listed = (await asyncio.to_thread(viperctl, "email", "failed", "list", "--project", project)).stdout
    number = listed.split()[2]
    shown = await asyncio.to_thread(viperctl, "email", "failed", "show", number, "--project", project)
    assert "there is no mailer 'bulk'; did you mean 'bulky'?" in shown.stdout
    await asyncio.to_thread(viperctl, "email", "failed", "retry", number, "--project", project)
    worker = Worker(project)
    await asyncio.to_thread(worker.start)
    (received,) = await bulk.arrive(1)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert received.sender == "news@example.com"


async def test_errors_and_remedies_name_the_mailers_own_settings(
    servers: tuple[SmtpServer, SmtpServer], caplog: pytest.LogCaptureFixture
) -> None:
    main, bulk = servers
    closed = {"host": "127.0.0.1", "port": bulk.port}
    bulk.stop()
    mailers = {
        "own": {**closed, "timeout": 2},
        "url": {"url": f"smtp://127.0.0.1:{bulk.port}"},
        "sparse": {"default_sender": None},
        "tls": {"host": main.host, "port": main.port, "use_tls": True},
    }
    mailer = Mailer(EmailSettings.load(email={**main.settings(default_sender="shop@example.com"), "mailers": mailers}))

    async def failure(name: str) -> str:
        with pytest.raises((DeliveryError, ImproperlyConfigured)) as failed:
            await send_email("a@example.com", "One", "1", background=False, mailer=name)
        return "\n".join((str(failed.value), *getattr(failed.value, "__notes__", ())))

    with using_mailer(mailer):
        text = await failure("own")
        assert 'correct EMAIL["mailers"]["own"]["host"] and EMAIL["mailers"]["own"]["port"]' in text
        assert 'correct EMAIL["mailers"]["url"]["url"]; check' in await failure("url")
        text = await failure("sparse")
        assert text.startswith('EMAIL["mailers"]["sparse"]["default_sender"]: is not set')
        text = await failure("tls")
        assert 'STARTTLS is required (EMAIL["mailers"]["tls"]["use_tls"])' in text
        assert 'EMAIL["use_tls"]' not in text
    await mailer.aclose()
    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["mailers"\]\["x"\]\["backend"\]: there is no backend'):
        Mailer(EmailSettings.load(email={"mailers": {"x": {"backend": "SMTPBackendd"}}}))


def test_a_setting_that_a_mailer_inherits_is_named_where_it_is() -> None:
    own = EmailSettings.load(email={"timeout": 3, "mailers": {"bulk": {"host": "bulk.example.com"}}}).of_mailer("bulk")
    assert [own.path(name) for name in ("host", "port", "timeout")] == [
        'EMAIL["mailers"]["bulk"]["host"]',
        'EMAIL["mailers"]["bulk"]["port"]',
        'EMAIL["timeout"]',
    ]
    once = own.name_paths('raise EMAIL["pool_size"] or EMAIL["retries"]')
    assert once == own.name_paths(once) == 'raise EMAIL["mailers"]["bulk"]["pool_size"] or EMAIL["retries"]'


def test_the_commands_show_and_check_a_mailer(servers: tuple[SmtpServer, SmtpServer], tmp_path: Path) -> None:
    main, bulk = servers
    project = write_project(tmp_path, tasks={}, email=email(main, bulk, rate_limit="3/second"))
    shown = viperctl("email", "config", "--mailer", "bulk", "--project", project)
    assert f"{bulk.port}" in shown.stdout
    assert 'EMAIL["mailers"]["bulk"]["port"] in settings' in shown.stdout
    checked = viperctl("email", "check", "--mailer", "bulk", "--project", project, "--from", "a@localhost")
    assert f"SMTPBackend at {bulk.host}:{bulk.port}" in checked.stdout
    assert not main.commands
    sent = viperctl("email", "send", "a@example.com", "--mailer", "bulk", "--project", project)
    assert (sent.returncode, len(bulk.messages), len(main.messages)) == (0, 1, 0)
    bulk.stop()
    checked = viperctl("email", "check", "--mailer", "bulk", "--project", project)
    assert 'correct EMAIL["mailers"]["bulk"]["host"] and EMAIL["mailers"]["bulk"]["port"]' in checked.stdout
    unknown = viperctl("email", "config", "--mailer", "bluk", "--project", project)
    assert unknown.returncode == 2
    assert "there is no mailer 'bluk'; did you mean 'bulk'?" in unknown.stderr
