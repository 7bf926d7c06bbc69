"""What the mailbox keeps, whatever its delivery mode; no server and no broker is asked (see conftest.py)."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from support.lifespan import Lifespan
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.testclient import TestClient

from openviper import JSONResponse, OpenViper, Request
from openviper.conf import override
from openviper.core.email import (
    DeliveryMode,
    Email,
    EmailMessageData,
    InvalidAddress,
    RecipientsRefused,
    TemplateFailed,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue import enqueue_email_job, worker_available
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import Record, entered
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox, capture_mail


def shop(**settings: object) -> OpenViper:
    app = OpenViper(title="Shop")
    app.add_extension(Email(settings))

    @app.post("/orders/{count:int}")
    async def order(request: Request) -> JSONResponse:
        for number in range(request.path_params["count"]):
            await send_email(f"c{number}@example.com", f"Order {number}", text="Thank you!")
        return JSONResponse({})

    @app.post("/sync")
    def sync(request: Request) -> JSONResponse:
        send_email_sync("alice@example.com", "From a thread", text="Thank you!")
        return JSONResponse({})

    return app


async def post(app: OpenViper, path: str) -> int:
    async with Lifespan(app) as started:
        transport = httpx.ASGITransport(started.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.post(path)).status_code


async def test_an_inline_message_is_kept(mailbox: Mailbox) -> None:
    receipt = await submit_email(
        '"Alice" <alice@example.com>',
        "Hi",
        text="Hello",
        cc="c@example.com",
        bcc=["b@example.com"],
        headers={"X-A": "1"},
    )
    assert (receipt.mode, receipt.accepted) == (
        DeliveryMode.INLINE,
        ("alice@example.com", "c@example.com", "b@example.com"),
    )
    message = mailbox.last
    assert message.to == ('"Alice" <alice@example.com>',)
    assert (message.cc, message.bcc) == (("c@example.com",), ("b@example.com",))
    assert message.recipients == ("alice@example.com", "c@example.com", "b@example.com")
    assert (message.subject, message.text, message.html) == ("Hi", "Hello", None)
    assert (message.mode, message.message_id) == (DeliveryMode.INLINE, receipt.message_id)
    assert message.headers == {"X-A": "1"}
    assert message.parsed["X-A"] == "1"
    assert message.parsed.get_content().strip() == "Hello"
    assert (len(mailbox), list(mailbox), mailbox[0]) == (1, [message], message)


async def test_deferred_mail_is_there_when_the_response_is(mailbox: Mailbox) -> None:
    """More at once than connections, so that the dispatcher delivers them in several rounds."""
    async with Lifespan(shop(pool_size=2)) as started:
        transport = httpx.ASGITransport(started.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post("/orders/9")
            assert {message.mode for message in mailbox} == {DeliveryMode.DEFERRED}
            assert len(mailbox) == 9


def test_the_test_client_sees_the_mail_of_its_request(mailbox: Mailbox) -> None:
    """Its application runs on an event loop in another thread."""
    with TestClient(shop()) as client:
        client.post("/orders/7")
        assert len(mailbox) == 7
        client.post("/sync")
        assert mailbox.last.subject == "From a thread"


def test_a_test_client_without_a_lifespan_sees_it_too(mailbox: Mailbox) -> None:
    client = TestClient(shop())
    client.post("/orders/2")
    mailbox.assert_sent(mode="deferred", count=2)


def test_several_loops_and_applications_share_the_mailbox(mailbox: Mailbox) -> None:
    asyncio.run(post(shop(default_sender="one@shop.example"), "/orders/1"))
    asyncio.run(post(shop(default_sender="two@shop.example"), "/orders/1"))
    thread = threading.Thread(target=send_email_sync, args=("alice@example.com", "Hi", "Hello"))
    thread.start()
    thread.join()
    assert [message.sender for message in mailbox] == ["one@shop.example", "two@shop.example", "orders@shop.example"]


async def test_a_mailer_made_before_is_captured_and_delivers_again_afterwards() -> None:
    with SmtpServer() as server:
        mailer = Mailer(EmailSettings(**server.settings(), default_sender="orders@shop.example"))
        await mailer.open()
        with using_mailer(mailer):
            with capture_mail() as mailbox:
                await send_email("kept@example.com", "Kept", text="Hello")
            await send_email("alice@example.com", "Sent", text="Hello")
        await mailer.aclose()
        (arrived,) = await server.arrive(1)
    assert [message.subject for message in mailbox] == ["Kept"]
    assert arrived.recipients == ["alice@example.com"]


async def test_a_mailer_first_used_in_a_capture_is_opened_after_it() -> None:
    with SmtpServer() as server, override(EMAIL={**server.settings(), "default_sender": "orders@shop.example"}):
        with capture_mail() as mailbox:
            await send_email("kept@example.com", "Kept", text="Hello")
            assert server.verbs == []
        await send_email("alice@example.com", "Sent", text="Hello")
        await server.arrive(1)
        assert len(mailbox) == 1


async def test_queued_mail_arrives_as_a_worker_sends_it(mailbox: Mailbox, redis_project: None) -> None:
    files = [("a.pdf", b"%PDF", "application/pdf")]
    receipt = await submit_email("alice@example.com", "Grüße", html="<p>ä</p>", bcc="b@example.com", attachments=files)
    assert receipt.mode is DeliveryMode.QUEUED
    message = mailbox.assert_sent(to="alice@example.com", mode="queued", attachment="a.pdf")
    assert (message.subject, message.html, message.bcc) == ("Grüße", "<p>ä</p>", ("b@example.com",))
    assert message.message_id == receipt.message_id


async def test_the_stub_broker_queues_in_a_test(mailbox: Mailbox) -> None:
    with override(TASKS={"broker": "stub"}):
        assert (await submit_email("alice@example.com", "Hi", text="Hello")).mode is DeliveryMode.QUEUED
    assert mailbox.last.mode is DeliveryMode.QUEUED


async def test_without_a_broker_nothing_is_queued(mailbox: Mailbox) -> None:
    assert not worker_available()
    assert (await submit_email("alice@example.com", "Hi", text="Hello", background=True)).mode is DeliveryMode.INLINE
    assert mailbox.last.mode is DeliveryMode.INLINE


async def test_a_request_queues_too(mailbox: Mailbox, redis_project: None) -> None:
    await post(shop(), "/orders/1")
    assert mailbox.last.mode is DeliveryMode.QUEUED


async def test_mail_for_later_tells_when(mailbox: Mailbox, redis_project: None) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    await send_email("alice@example.com", "Hi", text="Hello", send_at=later, expires_at=later + timedelta(hours=1))
    assert mailbox.last.send_at == later
    assert mailbox.last.expires_at == later + timedelta(hours=1)


async def test_a_job_is_kept_and_the_broker_seems_to_answer(mailbox: Mailbox, redis_project: None) -> None:
    assert worker_available()
    await enqueue_email_job(EmailMessageData(recipients="alice@example.com", subject="Hi", text="Hello"))
    mailbox.assert_sent(to="alice@example.com", mode=DeliveryMode.QUEUED)


async def test_a_broker_that_fails_leaves_the_other_modes(mailbox: Mailbox, redis_project: None) -> None:
    with mailbox.fail_with("down", at="broker"):
        assert (await submit_email("alice@example.com", "Hi", text="Hello")).mode is DeliveryMode.INLINE
    assert (await submit_email("alice@example.com", "Hi", text="Hello")).mode is DeliveryMode.QUEUED


@pytest.mark.parametrize("queued", [False, True])
async def test_a_redirected_copy_is_a_message_of_its_own_beside_that_of_an_exception(
    mailbox: Mailbox, queued: bool
) -> None:
    email = {"default_sender": "shop@example.com", "redirect_to": ["team@example.com"], "redirect_except": ["qa.test"]}
    with override(EMAIL=email, TASKS={"broker": "stub"} if queued else {}):
        await send_email(["alice@example.com", "bob@qa.test"], "Order", text="Thank you!")
    mailbox.assert_sent(recipients="bob@qa.test", to=["alice@example.com", "bob@qa.test"], count=1)
    copy = mailbox.assert_sent(
        recipients="team@example.com", headers={"X-Original-Recipients": "alice@example.com"}, count=1
    )
    assert copy.parsed["X-Original-Recipients"] == "alice@example.com"
    assert len(mailbox) == 2


async def test_mistakes_of_the_caller_raise_as_ever(mailbox: Mailbox) -> None:
    with pytest.raises(InvalidAddress):
        await send_email("nobody", "Hi", text="Hello")
    with pytest.raises(TemplateFailed):
        await send_email("alice@example.com", "Hi", template="missing.html")
    with override(EMAIL={"hots": "mail.example"}), pytest.raises(ImproperlyConfigured):
        await send_email("alice@example.com", "Hi", text="Hello")
    mailbox.assert_not_sent()


async def test_a_discarded_request_sends_nothing(mailbox: Mailbox) -> None:
    app = OpenViper(title="Shop")
    app.add_extension(Email({"discard_on_error": True}))

    @app.post("/orders")
    async def order(request: Request) -> JSONResponse:
        await send_email("alice@example.com", "Hi", text="Hello")
        return JSONResponse({}, status_code=500)

    assert await post(app, "/orders") == 500
    mailbox.assert_not_sent()


async def test_held_mail_is_delivered_on_demand_and_only_once(mailbox: Mailbox) -> None:
    record = Record()
    with entered(record):
        assert (await submit_email("alice@example.com", "Hi", text="Hello")).mode is DeliveryMode.HELD
        assert [message.to for message in mailbox.held] == [("alice@example.com",)]
        mailbox.assert_not_sent()
        (delivered,) = await mailbox.commit_held()
    assert (delivered.mode, mailbox.held) == (DeliveryMode.HELD, [])
    for held in record.commit():
        await held.on_commit()  # type: ignore[misc]
    assert len(mailbox) == 1


async def test_a_rollback_discards_what_was_held(mailbox: Mailbox) -> None:
    record = Record()
    with entered(record):
        await send_email("alice@example.com", "Hi", text="Hello")
    record.discard()
    assert (mailbox.held, await mailbox.commit_held()) == ([], [])
    mailbox.assert_not_sent()


async def test_a_commit_delivers_what_was_held(mailbox: Mailbox, redis_project: None) -> None:
    record = Record()
    with entered(record):
        await send_email("alice@example.com", "Hi", text="Hello")
    for held in record.commit():
        await held.on_commit()  # type: ignore[misc]
    assert mailbox.last.mode is DeliveryMode.QUEUED
    assert mailbox.held == []


async def test_nothing_leaves_after_the_capture_for_a_transaction_that_commits_later() -> None:
    record = Record()
    with capture_mail() as mailbox, entered(record):
        await send_email("alice@example.com", "Hi", text="Hello")
    for held in record.commit():
        await held.on_commit()  # type: ignore[misc]
    mailbox.assert_not_sent()


async def test_deferred_mail_that_leaves_after_the_capture_still_reaches_no_server() -> None:
    mailer, outbox = Mailer(EmailSettings.from_settings()), RequestOutbox()
    with capture_mail() as mailbox, using_mailer(mailer), collecting(outbox):
        await send_email("alice@example.com", "Hi", text="Hello")
    with capture_mail() as another:
        (accepted,) = outbox.flush()
        await accepted.done
    assert (len(mailbox), len(another)) == (1, 0)
    await mailer.aclose()


async def test_a_further_attempt_after_the_capture_still_reaches_no_server() -> None:
    mailer, outbox = Mailer(EmailSettings.from_settings()), RequestOutbox()
    with capture_mail() as mailbox, using_mailer(mailer), collecting(outbox):
        await send_email(["a@example.com", "b@example.com"], "Hi", text="Hello")
        mailbox.fail_with("450 busy", at="rcpt", to="b@example.com", times=2)
    (accepted,) = outbox.flush()
    await accepted.done
    assert mailbox.last.recipients == ("a@example.com", "b@example.com")
    await mailer.aclose()


async def test_a_recipient_who_is_refused_for_now_until_the_end_keeps_nobody_waiting(mailbox: Mailbox) -> None:
    mailbox.fail_with("450 busy", at="rcpt", to="b@example.com")
    with entered(Record()):
        await send_email(["a@example.com", "b@example.com"], "Hi", text="Hello")
        (delivered,) = await mailbox.commit_held()
    assert delivered.recipients == ("a@example.com",)


@pytest.mark.parametrize("turns", range(6))
async def test_a_commit_that_is_under_way_when_the_capture_ends_reaches_no_server(turns: int) -> None:
    """Wherever it stands: ``turns`` of the event loop after its begin."""
    record = Record()
    with capture_mail():
        with entered(record):
            await send_email("alice@example.com", "Hi", text="Hello")
        (held,) = record.commit()
        released = held.on_commit()
        assert released is not None
        commit = asyncio.ensure_future(released)
        for _ in range(turns):
            await asyncio.sleep(0)
    await commit


def test_held_mail_of_another_loop_is_delivered_there(mailbox: Mailbox) -> None:
    app = shop()
    record = Record()

    @app.post("/held")
    async def held(request: Request) -> JSONResponse:
        with entered(record):
            await send_email("alice@example.com", "Hi", text="Hello")
        return JSONResponse({})

    with TestClient(app) as client:
        client.post("/held")
        assert len(mailbox.held) == 1
        asyncio.run(mailbox.commit_held())
        assert mailbox.last.mode is DeliveryMode.DEFERRED


def test_held_mail_of_a_loop_that_has_ended_is_delivered_all_the_same(mailbox: Mailbox) -> None:
    async def hold() -> None:
        with entered(Record()):
            await send_email("alice@example.com", "Hi", text="Hello")

    asyncio.run(hold())
    assert len(asyncio.run(mailbox.commit_held())) == 1
    assert mailbox.held == []


async def test_wait_sees_mail_of_other_threads_as_it_comes(mailbox: Mailbox) -> None:
    def send() -> None:
        for number in range(3):
            send_email_sync("alice@example.com", f"Order {number}", text="Hello")

    thread = threading.Thread(target=send)
    thread.start()
    begin = time.monotonic()
    message = await mailbox.wait(count=3, timeout=PATIENCE, to="alice@example.com")
    assert time.monotonic() - begin < PATIENCE / 2, "it slept through what came"
    assert message.subject == "Order 2"
    thread.join()


async def test_wait_says_what_came_instead(mailbox: Mailbox) -> None:
    await send_email("alice@example.com", "Hi", text="Hello")
    with pytest.raises(
        AssertionError, match=r"1 expected within 0\.1 s with subject='Ho', found 0; 1 message was sent"
    ):
        await mailbox.wait(timeout=0.1, subject="Ho")


async def test_a_failing_deferred_message_is_tried_again_without_a_pause(mailbox: Mailbox) -> None:
    mailbox.fail_with("451 try later", at="data", times=3)
    async with asyncio.timeout(PATIENCE):  # with the pauses of production it takes 31 s
        await post(shop(), "/orders/1")
    assert len(mailbox) == 1
    assert mailbox.failed == []


@pytest.mark.parametrize("hold", [False, True])
async def test_queued_mail_that_may_have_been_delivered_is_tried_again_or_held(
    mailbox: Mailbox, redis_project: None, hold: bool
) -> None:
    with (
        override(EMAIL={"default_sender": "shop@example.com", "on_uncertain": "hold" if hold else "retry"}),
        mailbox.fail_with("", at="drop", times=1),
    ):
        await send_email("alice@example.com", "Hi", text="Hello")
    assert (len(mailbox), len(mailbox.failed)) == ((0, 1) if hold else (1, 0))


@pytest.mark.parametrize("queued", [False, True])
async def test_what_fails_for_good_is_in_failed(mailbox: Mailbox, queued: bool) -> None:
    with override(TASKS={"broker": "stub"} if queued else {}), mailbox.fail_with("550 no", at="mail"):
        await post(shop(), "/orders/1")
    mailbox.assert_not_sent()
    ((message, reason),) = mailbox.failed
    assert message.mode is (DeliveryMode.QUEUED if queued else DeliveryMode.DEFERRED)
    assert reason.endswith("MAIL FROM: 550 no")


@pytest.mark.parametrize("queued", [False, True])
async def test_a_recipient_refused_for_now_is_added_by_the_next_attempt(mailbox: Mailbox, queued: bool) -> None:
    app = shop()

    @app.post("/both")
    async def both(request: Request) -> JSONResponse:
        await send_email(["a@example.com", "b@example.com"], "Hi", text="Hello")
        return JSONResponse({})

    mailbox.fail_with("450 busy", at="rcpt", to="b@example.com", times=1)
    with override(TASKS={"broker": "stub"} if queued else {}):
        await post(app, "/both")
    assert mailbox.last.recipients == ("a@example.com", "b@example.com")
    assert len(mailbox) == 1


@pytest.mark.parametrize("queued", [False, True])
async def test_without_allow_partial_nobody_gets_what_one_recipient_is_refused_for_good(
    mailbox: Mailbox, queued: bool
) -> None:
    app = shop()

    @app.post("/both")
    async def both(request: Request) -> JSONResponse:
        await send_email(["a@example.com", "b@example.com"], "Hi", text="Hello")
        return JSONResponse({})

    mailbox.fail_with("550 no", at="rcpt", to="b@example.com")
    email = {"default_sender": "shop@example.com", "allow_partial": False}
    with override(EMAIL=email, TASKS={"broker": "stub"} if queued else {}):
        await post(app, "/both")
    mailbox.assert_not_sent()
    ((message, reason),) = mailbox.failed
    assert message.recipients == ("a@example.com", "b@example.com")
    assert "1 of 2 recipients refused, nothing was sent: 550 no" in reason


async def test_failing_ends_with_its_block(mailbox: Mailbox) -> None:
    with mailbox.fail_with("550 no", at="rcpt"), pytest.raises(RecipientsRefused):
        await send_email("alice@example.com", "Hi", text="Hello")
    await send_email("alice@example.com", "Hi", text="Hello")
    assert len(mailbox) == 1


async def test_clear_forgets_messages_and_failures(mailbox: Mailbox) -> None:
    await send_email("alice@example.com", "Hi", text="Hello")
    with mailbox.fail_with("550 no"):
        await send_email("alice@example.com", "Hi", text="Hello", fail_silently=True)
    mailbox.clear()
    assert (len(mailbox), mailbox.failed) == (0, [])


async def test_mail_in_bulk_is_kept(mailbox: Mailbox) -> None:
    messages = [{"recipients": f"c{number}@example.com", "subject": "News", "text": "Hello"} for number in range(9)]
    assert all([bool(receipt) async for receipt in send_many(messages)])
    mailbox.assert_sent(subject="News", count=9)


async def test_the_inner_of_two_captures_gets_the_mail() -> None:
    with capture_mail() as outer:
        with capture_mail() as inner:
            await send_email("inner@example.com", "Hi", text="Hello")
        await send_email("outer@example.com", "Hi", text="Hello")
    assert [message.to for message in inner] == [("inner@example.com",)]
    assert [message.to for message in outer] == [("outer@example.com",)]


async def test_an_attribute_of_another_library_is_answered_with_ours(mailbox: Mailbox) -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'outbox'; iterate over it, or see its messages$"):
        mailbox.outbox  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"'mesages'; did you mean 'messages'\?$"):
        mailbox.mesages  # type: ignore[attr-defined]  # noqa: B018


async def test_a_link_that_is_not_there_names_the_message(mailbox: Mailbox) -> None:
    with override(EMAIL={"default_sender": "shop@example.test"}):
        await send_email("a@example.test", "Your order", text="No link")
    with pytest.raises(IndexError, match=r"^there is no link 0: 'Your order' to a@example.test .* has 0 links$"):
        mailbox.links()[0]
