"""The mailer of the code that sends, and the end of one that is replaced."""

import asyncio
import gc
import time
from weakref import WeakSet

from support.mailers import memory_mailer
from support.patience import PATIENCE
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    DeliveryMode,
    send_email,
    send_email_sync,
    submit_email,
)
from openviper.core.email.delivery import Mailer, current_mailer, serving_loop, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.settings import EmailSettings

INLINE, DEFERRED, QUEUED = DeliveryMode.INLINE, DeliveryMode.DEFERRED, DeliveryMode.QUEUED


def test_a_loop_that_has_ended_is_not_kept() -> None:
    """Also where several tasks have opened the mailer at once, which binds its lock to the loop."""
    loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    async def send_some() -> None:
        loops.add(asyncio.get_running_loop())
        await asyncio.gather(*(current_mailer() for _ in range(5)))

    with override(EMAIL={"backend": "MemoryBackend"}):
        for _ in range(5):
            asyncio.run(send_some())
    gc.collect()
    assert len(loops) == 0


async def test_the_loop_gets_one_mailer_until_the_settings_change() -> None:
    email = {"backend": "MemoryBackend", "default_sender": "a@example.test"}
    with override(EMAIL=email):
        first = await current_mailer()
        assert await current_mailer() is first
    with override(EMAIL={**email, "default_sender": "b@example.test"}):
        second = await current_mailer()
    assert second is not first
    assert second.settings.default_sender == "b@example.test"


async def test_a_request_uses_its_own_applications_mailer() -> None:
    of_loop, of_request = memory_mailer(), memory_mailer()
    with serving_loop(of_loop):
        assert await current_mailer() is of_loop
        with using_mailer(of_request):
            assert await current_mailer() is of_request
            assert await asyncio.create_task(current_mailer()) is of_request
        assert await current_mailer() is of_loop


async def test_threads_that_use_a_requests_mailer_at_once_open_it_on_its_own_loop() -> None:
    """Each thread runs a loop of its own, and a lock of one loop cannot wake who waits on another."""
    mailer = memory_mailer()
    try:
        with using_mailer(mailer):
            sending = (asyncio.to_thread(send_email_sync, "a@example.test", "Hello", text="...") for _ in range(5))
            assert await asyncio.wait_for(asyncio.gather(*sending), PATIENCE) == [True] * 5
    finally:
        await mailer.aclose()


async def test_a_mailer_that_changed_settings_have_replaced_closes_its_connections() -> None:
    with SmtpServer() as server:
        for number in range(20):
            email = {**server.settings(), "default_sender": "shop@example.test", "local_hostname": f"n{number}.test"}
            with override(EMAIL=email):
                await send_email("user@example.test", f"{number}", text="Hi")
        gc.collect()
        await server.until(lambda: server.open_connections <= 1)
        assert len(server.messages) == 20


async def test_a_replaced_mailer_delivers_what_it_accepted() -> None:
    with SmtpServer() as server:
        email = {**server.settings(), "default_sender": "shop@example.test"}
        outbox = RequestOutbox()
        with override(EMAIL=email), collecting(outbox):
            assert (await submit_email("user@example.test", "deferred", text="Hi")).mode is DEFERRED
        with override(EMAIL={**email, "local_hostname": "other.test"}):
            await send_email("user@example.test", "inline", text="Hi")
            gc.collect()
            await asyncio.gather(*(delivery.done for delivery in outbox.flush()))
        assert sorted(message.parse()["Subject"] for message in server.messages) == ["deferred", "inline"]


async def test_a_mailer_closes_within_one_shutdown_timeout_whatever_hangs() -> None:
    """A mail server that does not answer takes all of it, and leaves a listener that never ends a second."""

    async def never_ends(_event: object) -> None:
        await asyncio.Event().wait()

    with SmtpServer() as smtp:
        gate = smtp.hold("body")
        email = smtp.settings(default_sender="a@example.test", listeners=[never_ends], shutdown_timeout=3)
        mailer = Mailer(EmailSettings(**email))
        await mailer.open()
        outbox = RequestOutbox()
        with collecting(outbox), using_mailer(mailer):
            await send_email("b@example.test", "Stuck", text="x")
        outbox.flush()
        await gate.reached()
        began = time.monotonic()
        await mailer.aclose()
        assert 3 <= time.monotonic() - began < 6
        gate.release()
