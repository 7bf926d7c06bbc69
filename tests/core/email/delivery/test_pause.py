"""Pausing: what is sent while sending is paused (nothing), and what becomes of mail in each delivery mode."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE
from support.pausing import STOPS_WITHIN, mails_since, pause, resume
from support.smtpd import SmtpServer
from support.workers import viperctl, write_project

from openviper.conf import override
from openviper.core.email import DeliveryMode, MessageEvent, SendingPaused, send_many, submit_email, subscribe
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.pause.flag import change_state
from openviper.core.email.delivery.pause.folder_flag import FolderPauseStore
from openviper.core.email.delivery.pause.watch import pause_watch
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.exceptions import ImproperlyConfigured


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


class Scene:
    """A project without a broker: its flag is kept in a folder."""

    def __init__(self, folder: Path, smtp: SmtpServer, **email: Any) -> None:
        self.smtp = smtp
        self.state_dir = folder / "state"
        self.email = smtp.settings(default_sender="shop@example.com", state_dir=str(self.state_dir), **email)
        self.project = write_project(folder / "project", tasks={}, email=self.email)
        self.store = FolderPauseStore(self.state_dir)

    async def set(self, *, paused: bool, mailer: str | None = None, seconds: float | None = None) -> None:
        """Do as the commands do, in this process."""
        await asyncio.to_thread(change_state, self.store, mailer, seconds=seconds, stop=paused)


@pytest.fixture
async def scene(tmp_path: Path, smtp: SmtpServer) -> AsyncIterator[Scene]:
    made = Scene(tmp_path, smtp)
    with override(EMAIL=made.email):
        yield made


@pytest.fixture
async def mailer(scene: Scene) -> AsyncIterator[Mailer]:
    made = Mailer(EmailSettings.from_settings())
    await made.open()
    yield made
    await made.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def until_known(mailer: Mailer, *, paused: bool) -> None:
    """Wait until the process has read the flag."""
    watch = mailer.transport.pause
    assert watch is not None
    await until(lambda: watch.on is paused)


async def send(through: Mailer, subject: str = "Hi", **options: Any) -> DeliveryMode:
    with using_mailer(through):
        return (await submit_email("a@example.com", subject, text="Hello", **options)).mode


async def defer(mailer: Mailer, *subjects: str) -> list[Any]:
    """Send within a request, which then ends."""
    outbox = RequestOutbox()
    with collecting(outbox):
        for subject in subjects:
            assert await send(mailer, subject) is DeliveryMode.DEFERRED
    return outbox.flush()


def subjects(smtp: SmtpServer) -> list[str]:
    return [str(message.parse()["Subject"]) for message in smtp.messages]


@pytest.fixture
def events() -> Iterator[list[MessageEvent]]:
    seen: list[MessageEvent] = []
    end = subscribe(seen.append)
    yield seen
    end()


async def under_load(scene: Scene, mailer: Mailer, work: Callable[[int], Awaitable[object]]) -> float:
    """Have ten tasks work for as long as a pause lasts; returns the moment at which the command had returned."""
    stop = asyncio.Event()

    async def repeat(number: int) -> None:
        while not stop.is_set():
            await work(number)
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(repeat(number)) for number in range(10)]
    await scene.smtp.seen("MAIL", 10)
    paused_at = await asyncio.to_thread(pause, scene.project)
    await asyncio.sleep(STOPS_WITHIN + 0.5)
    stop.set()
    await asyncio.gather(*tasks)
    assert mails_since(scene.smtp, paused_at + STOPS_WITHIN) == []
    return paused_at


async def test_inline_sends_fail_at_once_and_go_on_after_the_pause(scene: Scene, mailer: Mailer) -> None:
    outcomes: list[SendingPaused | DeliveryMode] = []

    async def work(_number: int) -> None:
        try:
            outcomes.append(await send(mailer))
        except SendingPaused as error:
            outcomes.append(error)

    await under_load(scene, mailer, work)
    errors = [outcome for outcome in outcomes if isinstance(outcome, SendingPaused)]
    assert len(scene.smtp.messages) == len(outcomes) - len(errors)
    assert all(error.temporary and error.mailer is None and error.until is None for error in errors)
    assert str(errors[0]) == "sending is paused (all mail, until `viperctl email resume`); nothing was sent"
    await asyncio.to_thread(resume, scene.project)
    await until_known(mailer, paused=False)
    assert await send(mailer) is DeliveryMode.INLINE


async def test_deferred_mail_waits_and_arrives_after_the_pause(scene: Scene, mailer: Mailer) -> None:
    sent = 0

    async def work(_number: int) -> None:
        nonlocal sent
        sent += 1
        if mailer.dispatcher.has_room(1000):
            await defer(mailer, f"{sent}")
        else:
            sent -= 1

    await under_load(scene, mailer, work)
    waiting = mailer.dispatcher.pending
    assert waiting > 0
    assert len(scene.smtp.messages) == sent - waiting
    await asyncio.to_thread(resume, scene.project)
    await scene.smtp.arrive(sent)
    assert len(set(subjects(scene.smtp))) == sent


async def test_held_mail_waits_too_and_nobody_waits_for_it(scene: Scene, mailer: Mailer) -> None:
    await scene.set(paused=True)
    await until_known(mailer, paused=True)
    async with asyncio.timeout(PATIENCE), transaction():
        assert await send(mailer, "held") is DeliveryMode.HELD
    assert mailer.dispatcher.pending == 1
    assert scene.smtp.messages == []
    await scene.set(paused=False)
    await scene.smtp.arrive(1)


async def test_each_message_of_send_many_fails_at_once(scene: Scene, mailer: Mailer) -> None:
    messages = [{"recipients": ["a@example.com"], "subject": str(number), "text": "x"} for number in range(200)]

    async def run(*, pipeline: bool) -> list[Any]:
        with using_mailer(mailer):
            return [receipt async for receipt in send_many(messages, pipeline=pipeline)]

    for pipeline in (False, True):
        scene.smtp.behave()
        gate = scene.smtp.hold("body")
        scene.smtp.messages.clear()
        running = asyncio.create_task(run(pipeline=pipeline))
        await gate.reached()
        await scene.set(paused=True)
        await until_known(mailer, paused=True)
        known_at = time.monotonic()
        gate.release()
        receipts = await running
        assert all(isinstance(receipt.error, SendingPaused | None) for receipt in receipts)
        assert len(receipts) == 200
        assert len(scene.smtp.messages) == sum(map(bool, receipts)) < 200
        # What was written before that moment may be read later: up to 20 messages on each of 5 connections.
        assert len(mails_since(scene.smtp, known_at)) <= (100 if pipeline else 0)
        await scene.set(paused=False)
        await until_known(mailer, paused=False)


async def test_a_message_that_waits_for_a_connection_or_the_rate_is_stopped_before_its_transaction(
    tmp_path: Path, smtp: SmtpServer
) -> None:
    scene = Scene(tmp_path, smtp, pool_size=1, rate_limit="2/second")
    gate = smtp.hold("body")
    with override(EMAIL=scene.email):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        sending = [asyncio.create_task(send(mailer)) for _ in range(6)]
        await gate.reached()
        await scene.set(paused=True)
        await until_known(mailer, paused=True)
        gate.release()
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        await mailer.aclose()
    assert [type(outcome) for outcome in outcomes] == [DeliveryMode, *[SendingPaused] * 5]
    assert smtp.verbs.count("MAIL") == 1


async def test_a_full_dispatcher_leaves_a_new_send_inline_which_fails_at_once(tmp_path: Path, smtp: SmtpServer) -> None:
    scene = Scene(tmp_path, smtp, dispatcher_messages=3)
    with override(EMAIL=scene.email):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        await scene.set(paused=True)
        await until_known(mailer, paused=True)
        deliveries = await defer(mailer, "1", "2", "3")
        assert all(delivery.admitted.done() for delivery in deliveries)
        with collecting(RequestOutbox()), pytest.raises(SendingPaused):
            await send(mailer)
        await scene.set(paused=False)
        await smtp.arrive(3)
        await mailer.aclose()
    assert subjects(smtp) == ["1", "2", "3"]


async def test_shutdown_ends_at_once_and_logs_each_message_that_is_lost(
    scene: Scene, mailer: Mailer, caplog: pytest.LogCaptureFixture, events: list[MessageEvent]
) -> None:
    await scene.set(paused=True)
    await until_known(mailer, paused=True)
    deliveries = await defer(mailer, "1", "2", "3")
    began = time.monotonic()
    await mailer.aclose()
    assert time.monotonic() - began < EmailSettings.from_settings().shutdown_timeout / 2
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.split()[1] for line in lost] == [delivery.message.message_id for delivery in deliveries]
    assert all("sending is paused" in line and "no message broker" in line for line in lost)
    assert [event.kind for event in events] == [*["deferred"] * 3, *["paused"] * 3, *["failed"] * 3]
    assert scene.smtp.verbs.count("MAIL") == 0


async def test_a_pause_counts_no_attempt_of_deferred_mail(
    scene: Scene, mailer: Mailer, events: list[MessageEvent]
) -> None:
    """It is temporarily refused, waits for its retry, is paused meanwhile, and has its second attempt afterwards."""
    scene.smtp.fault("MAIL", 451, nth=1)
    (delivery,) = await defer(mailer, "1")
    await scene.smtp.seen("MAIL", 1)
    await scene.set(paused=True)
    await until(lambda: delivery.paused)
    await scene.set(paused=False)
    await scene.smtp.arrive(1)
    await until(lambda: events[-1].kind == "delivered")
    assert [(event.kind, event.attempt) for event in events if event.kind != "deferred"] == [
        ("sending", 1),
        ("retrying", 1),
        ("paused", None),
        ("sending", 2),
        ("delivered", 2),
    ]


async def test_only_the_mailer_that_is_named_is_paused(tmp_path: Path, smtp: SmtpServer) -> None:
    with SmtpServer() as other:
        bulk = {"host": other.host, "port": other.port, "timeout": PATIENCE}
        scene = Scene(tmp_path, smtp, mailers={"bulk": bulk})
        with override(EMAIL=scene.email):
            mailer = Mailer(EmailSettings.from_settings())
            await mailer.open()
            await asyncio.to_thread(pause, scene.project, "--mailer", "bulk")
            assert await send(mailer) is DeliveryMode.INLINE
            with pytest.raises(SendingPaused, match="mail of the mailer bulk") as raised:
                await send(mailer, mailer="bulk")
            assert raised.value.mailer == "bulk"
            outbox = RequestOutbox()
            with collecting(outbox):
                await send(mailer, "later", mailer="bulk")
                await send(mailer, "now")
            outbox.flush()
            await smtp.arrive(2)
            await asyncio.to_thread(resume, scene.project, "--mailer", "bulk")
            await other.arrive(1)
            await mailer.aclose()
    assert subjects(smtp) == ["Hi", "now"]
    assert subjects(other) == ["later"]


async def test_a_pause_for_a_time_ends_by_itself(scene: Scene, mailer: Mailer) -> None:
    await scene.set(paused=True, seconds=1.5)
    await until_known(mailer, paused=True)
    with pytest.raises(SendingPaused) as raised:
        await send(mailer)
    assert raised.value.until is not None
    assert raised.value.until - time.time() == pytest.approx(1.5, abs=1.5)
    await defer(mailer, "deferred")
    await scene.smtp.arrive(1)
    assert time.time() >= raised.value.until
    await until_known(mailer, paused=False)


async def test_a_hundred_changes_under_load_lose_and_double_nothing(scene: Scene, mailer: Mailer) -> None:
    sent: list[str] = []
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            if mailer.dispatcher.has_room(1000):
                sent.append(str(len(sent)))
                await defer(mailer, sent[-1])
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(work()) for _ in range(5)]
    for number in range(100):
        await scene.set(paused=number % 2 == 0)
        if number % 20 == 0:
            await until_known(mailer, paused=True)
        await asyncio.sleep(0.01 * (number % 7))
    stop.set()
    await asyncio.gather(*tasks)
    await scene.smtp.arrive(len(sent))
    assert sorted(subjects(scene.smtp), key=int) == sent
    await until(lambda: mailer.dispatcher.pending == 0)


async def test_a_process_that_starts_during_a_pause_sends_nothing(scene: Scene) -> None:
    await scene.set(paused=True)
    with pytest.raises(SendingPaused):
        await submit_email("a@example.com", "Hi", text="Hello")
    assert scene.smtp.commands == []


@pytest.mark.parametrize("flag", [b"", b"junk", b"\xff\x00", b"{}", b'{"version": 2, "pauses": []}', b"[" * 100_000])
async def test_a_flag_that_cannot_be_read_pauses_all_mail(
    scene: Scene, mailer: Mailer, flag: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def write(data: bytes) -> None:
        (scene.state_dir / "paused.json").write_bytes(data)

    await asyncio.to_thread(write, flag)
    await until_known(mailer, paused=True)
    with pytest.raises(SendingPaused):
        await send(mailer)
    assert [record.levelname for record in caplog.records if "cannot be read" in record.getMessage()] == ["ERROR"]
    await asyncio.to_thread(resume, scene.project)
    await until_known(mailer, paused=False)
    assert await send(mailer) is DeliveryMode.INLINE


async def test_a_flag_that_is_a_link_or_a_folder_pauses_all_mail(scene: Scene, mailer: Mailer, tmp_path: Path) -> None:
    file = scene.state_dir / "paused.json"

    def make_link() -> None:
        (tmp_path / "elsewhere").write_text('{"version": 1, "pauses": []}')
        file.symlink_to(tmp_path / "elsewhere")

    await asyncio.to_thread(make_link)
    await until_known(mailer, paused=True)
    await asyncio.to_thread(resume, scene.project)
    await until_known(mailer, paused=False)
    await asyncio.to_thread(file.unlink)
    await asyncio.to_thread(file.mkdir)
    await until_known(mailer, paused=True)


def test_a_folder_that_others_may_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    FolderPauseStore(folder).open()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(ImproperlyConfigured, match=r'EMAIL\["state_dir"\].*may be used by other users; chmod 700'):
        FolderPauseStore(folder).open()
    folder.chmod(0o700)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ImproperlyConfigured, match="is a symbolic link"):
        FolderPauseStore(tmp_path / "link").open()
    (tmp_path / "file").write_text("")
    with pytest.raises(ImproperlyConfigured, match="is not a folder"):
        FolderPauseStore(tmp_path / "file").open()
    with pytest.raises(ImproperlyConfigured, match="cannot be used: No such file or directory"):
        FolderPauseStore(tmp_path / "missing" / "state").open()


async def test_a_folder_of_another_user_stops_the_start(tmp_path: Path, smtp: SmtpServer) -> None:
    """Of no user at all here; the brake must not be one that this process would not see."""
    settings = smtp.settings(default_sender="shop@example.com", state_dir="/")
    refusal = pytest.raises(ImproperlyConfigured, match=r'EMAIL\["state_dir"\]: \'/\'')
    with override(EMAIL=settings), refusal:
        await submit_email("a@example.com", "Hi", text="Hello")
    assert smtp.commands == []


def test_without_a_place_for_the_flag_the_command_refuses(tmp_path: Path, smtp: SmtpServer) -> None:
    project = write_project(tmp_path / "project", tasks={"broker": "rabbitmq"}, email=smtp.settings())
    done = viperctl("email", "pause", "--project", project)
    assert done.returncode == 1
    assert 'set TASKS["broker"] to "redis", or EMAIL["outbox"], or EMAIL["state_dir"]' in done.stderr


def test_the_commands_say_what_is_paused_and_until_when(tmp_path: Path, smtp: SmtpServer) -> None:
    scene = Scene(tmp_path, smtp, mailers={"bulk": {"host": "localhost"}})

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        done = viperctl("email", *arguments, "--project", scene.project)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    assert "Sending  paused: mail of the mailer bulk, until 2" in run("pause", "--mailer", "bulk", "--for", "1h")[0]
    out, warning = run("pause")
    assert "Sending  paused: all mail, until `viperctl email resume`" in out
    assert "neither a message broker nor the outbox is configured" in warning
    assert run("status")[0].count("Sending  paused: ") == 2
    assert "all mail is paused" in run("resume", "--mailer", "bulk", code=1)[1]
    assert run("status")[0].count("Sending  paused: ") == 1
    assert run("resume")[0] == "Sending  goes on\n"
    assert "mail is not queued" in run("status", code=1)[1]
    assert "there is no mailer 'bulky'" in run("pause", "--mailer", "bulky", code=2)[1]
    for wrong in ("soon", "0s", "10"):
        assert "--for" in run("pause", "--for", wrong, code=2)[1]


def test_a_process_that_changes_its_database_follows_the_flag_of_the_new_one(tmp_path: Path) -> None:
    """Of the database outbox, while the watch of the first one lives."""
    settings = EmailSettings(outbox="database")
    watches = []
    for name in ("first", "second", "first"):
        with override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / name}.sqlite3"):
            watches.append(pause_watch(settings))
    first, second, again = watches
    assert first is again
    assert first is not second
