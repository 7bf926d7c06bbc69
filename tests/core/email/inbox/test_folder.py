"""The inbox in a folder: kept between processes, bounded, and never half."""

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.earlier_version import EarlierVersion, earlier_version
from support.inbox import SAME_ORIGIN, Inboxes, keys_of
from support.patience import PATIENCE
from support.prepared import make_outgoing
from support.smtpd import SmtpServer

from openviper.core.email import AttachmentData, DeliveryMode, EmailSettings, send_email
from openviper.core.email.events import Circumstances, MessageEvent, publish
from openviper.core.email.inbox import start_recording
from openviper.core.email.inbox.entries import key_of
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.inbox.folder_store import FolderStore
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue.keys import read_key

__all__ = ["earlier_version"]

SCRIPT = """
import asyncio
from openviper.conf import settings
from openviper.core.email import EmailSettings, send_email
from openviper.core.email.inbox import start_recording

email = {{"backend": "MemoryBackend", "default_sender": "a@example.test", "inbox_dir": {folder!r}}}
settings.configure(DEBUG=True, EMAIL=email)
start_recording(EmailSettings.from_settings(), debug=True)
for number in range(20):
    asyncio.run(send_email("b@example.test", f"{name} {{number}}", text="From another process"))
"""


def made(**message: str) -> OutgoingMessage:
    return asyncio.run(make_outgoing(**message))


def event(message: OutgoingMessage, kind: str = "sending", at: float = 1.0, detail: str = "") -> MessageEvent:
    return MessageEvent(kind=kind, message_id=message.message_id, message=message, at=at, detail=detail)  # type: ignore[arg-type]


async def test_everything_of_a_message_comes_back(inboxes: Inboxes, tmp_path: Path) -> None:
    parts = [AttachmentData("a.bin", b"\x00\x01", "application/x-a"), AttachmentData("ü.txt", b"", "text/plain")]
    image = AttachmentData("dot.png", b"\x89PNG", "image/png", inline=True, content_id="dot")
    settings: dict[str, Any] = {"inbox_dir": tmp_path / "inbox"}
    async with inboxes.open(**settings) as client:
        await send_email(
            '"Ana Ü" <a@example.test>', "Grüße", "Text", '<img src="cid:dot" alt="">', bcc="b@example.test",
            attachments=[*parts, image], headers={"X-One": "1"}, reply_to="r@example.test",
        )  # fmt: skip
        (key,) = keys_of((await client.get("/_mail/")).text)
        before = (await client.get(f"/_mail/api/messages/{key}")).json()
        source = (await client.get(f"/_mail/{key}/message.eml")).content
        await client.get(f"/_mail/{key}")
    async with inboxes.open(**settings) as client:
        after = (await client.get(f"/_mail/api/messages/{key}")).json()
        assert after == {**before, "read": True}
        assert before["bcc"] == ["b@example.test"]
        assert [step["kind"] for step in after["timeline"]] == ["sending", "delivered"]
        assert (await client.get(f"/_mail/{key}/message.eml")).content == source
        assert (await client.get(f"/_mail/{key}/attachments/0")).content == b"\x00\x01"
        assert (await client.get(f"/_mail/{key}/inline/dot")).content == b"\x89PNG"
        answer = await client.post(f"/_mail/{key}/again", headers=SAME_ORIGIN)
        await asyncio.sleep(0)
        copy = (await client.get(answer.headers["location"].replace("/_mail/", "/_mail/api/messages/"))).json()
        assert (copy["subject"], copy["bcc"], len(copy["attachments"])) == ("Grüße", ["b@example.test"], 3)


async def test_mail_with_a_key_is_sent_again_without_it(inboxes: Inboxes, tmp_path: Path) -> None:
    with SmtpServer() as server:
        async with inboxes.open(inbox_dir=tmp_path, **server.settings(backend="SMTPBackend")) as client:
            await send_email("a@example.test", "Order", "Thank you", key="sent-again")
            (key,) = keys_of((await client.get("/_mail/")).text)
            answer = await client.post(f"/_mail/{key}/again", headers=SAME_ORIGIN)
            original, copy = await server.arrive(2)
        store = FolderStore(Folder(tmp_path), sensitive=True)
        entries = [await store.get(each) for each in (key, answer.headers["location"].rpartition("/")[2])]
        await store.aclose()
    assert original.parse()["Message-ID"] != copy.parse()["Message-ID"]
    # A queue that is given the copy at shutdown would drop it as a duplicate if it had the key.
    keys = [read_key(entry.prepared.must) for entry in entries if entry is not None]
    assert [given and given[0] for given in keys] == ["sent-again", None]


BEFORE = """
import asyncio, sys
from openviper.conf import settings
from openviper.core.email import EmailSettings, send_email
from openviper.core.email.mailbox import start_recording

email = {"backend": "MemoryBackend", "default_sender": "Ä <a@example.test>", "inbox_dir": sys.argv[1]}
settings.configure(DEBUG=True, EMAIL=email)
start_recording(EmailSettings.from_settings(), debug=True)
message = {"text": "Text", "html": "<b>ü</b>", "headers": {"X-One": "1"}, "reply_to": "r@example.test"}
asyncio.run(send_email("b@example.test", "Grüße", bcc="c@example.test", attachments=[("a.bin", b"123")], **message))
"""


async def test_what_the_version_before_has_written_is_read(
    inboxes: Inboxes, tmp_path: Path, earlier_version: EarlierVersion
) -> None:
    await asyncio.to_thread(earlier_version.run, BEFORE, str(tmp_path))
    async with inboxes.open(inbox_dir=tmp_path) as client:
        (key,) = keys_of((await client.get("/_mail/")).text)
        message = (await client.get(f"/_mail/api/messages/{key}")).json()
        content = (await client.get(f"/_mail/{key}/attachments/0")).content
    assert [message[name] for name in ("subject", "text", "html")] == ["Grüße", "Text", "<b>ü</b>"]
    assert [message[name] for name in ("to", "bcc", "reply_to")] == [
        ["b@example.test"], ["c@example.test"], ["r@example.test"]
    ]  # fmt: skip
    assert [part["size"] for part in message["attachments"]] == [3]
    assert content == b"123"


async def test_several_processes_write_to_one_inbox(inboxes: Inboxes, tmp_path: Path) -> None:
    async with inboxes.open(inbox_dir=tmp_path) as client:
        waiting = asyncio.create_task(client.get("/_mail/api/messages/wait?subject=second+19&timeout=60"))
        scripts = [SCRIPT.format(folder=str(tmp_path), name=name) for name in ("first", "second")]
        processes = [subprocess.Popen([sys.executable, "-c", script]) for script in scripts]
        ended = [await asyncio.to_thread(process.wait, PATIENCE) for process in processes]
        assert ended == [0, 0]
        assert (await waiting).json()["text"] == "From another process"
        messages = (await client.get("/_mail/api/messages")).json()["messages"]
    assert {message["subject"] for message in messages} == {f"{n} {i}" for n in ("first", "second") for i in range(20)}
    assert {message["state"] for message in messages} == {"delivered"}


def test_the_oldest_go_when_there_are_too_many_messages_or_bytes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, max_messages=5, max_bytes=3000)
    for number in range(8):
        folder.write(event(made(subject=f"n{number}"), at=float(number)))
    kept = [entry.prepared.subject for entry in folder.entries()]
    assert kept == ["n7", "n6", "n5", "n4", "n3"]
    folder.write(event(made(subject="large", text="x" * 2500), at=9.0))
    assert folder.entries()[0].prepared.subject == "large"
    assert len(folder.entries()) < 3
    folder.write(event(made(subject="huge", text="x" * 5000), at=10.0))
    assert [entry.prepared.subject for entry in folder.entries()] == ["huge"]


def test_a_flow_larger_than_the_folder_leaves_the_newest_messages_at_their_end(tmp_path: Path) -> None:
    """A worker's attempts bring no message back that was removed for newer ones."""
    web, worker = Folder(tmp_path, max_messages=5), Folder(tmp_path, max_messages=5)
    messages = [made(subject=f"n{number}") for number in range(20)]
    began = time.time()
    for number, message in enumerate(messages):
        web.write(event(message, "queued", at=began + number / 1000))
    time.sleep(0.05)  # the folder is not of the future
    for message in messages:
        for kind in ("sending", "delivered"):
            worker.write(replace(event(message, kind, at=began + 1), mode=DeliveryMode.QUEUED))
    entries = web.entries()
    assert [entry.prepared.subject for entry in entries] == ["n19", "n18", "n17", "n16", "n15"]
    assert {(entry.mode, entry.state) for entry in entries} == {("queued", "delivered")}


def test_an_attempt_of_a_message_that_nobody_has_recorded_tells_its_mode(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(replace(event(made()), mode=DeliveryMode.QUEUED))
    (entry,) = folder.entries()
    assert (entry.mode, entry.state) == ("queued", "sending")


def test_no_end_of_a_message_is_lost_when_events_come_faster_than_they_are_written(tmp_path: Path) -> None:
    end = start_recording(EmailSettings(inbox_dir=str(tmp_path)), debug=True)
    messages = [made(subject=f"n{number}") for number in range(600)]
    for kind in ("queued", "sending", "delivered"):
        for message in messages:
            publish(kind, message, circumstances=Circumstances(DeliveryMode.QUEUED, 1))
    end()
    entries = Folder(tmp_path).entries()
    assert len(entries) == 500
    assert {(entry.mode, entry.state, len(entry.steps)) for entry in entries} == {("queued", "delivered", 3)}


def test_two_writers_add_the_same_message_once(tmp_path: Path) -> None:
    message = made()
    first, second = Folder(tmp_path), Folder(tmp_path)
    first.write(event(message, at=1.0))
    second.write(event(message, "delivered", at=2.0))
    (entry,) = first.entries()
    assert [step.kind for step in entry.steps] == ["sending", "delivered"]


def test_steps_are_in_the_order_in_which_they_happened(tmp_path: Path) -> None:
    """A worker may be quicker than the process that has queued the message."""
    folder, message = Folder(tmp_path), made()
    for kind, at in (("delivered", 1.3), ("sending", 1.1), ("queued", 1.2)):
        folder.write(event(message, kind, at=at))
    (entry,) = folder.entries()
    assert [step.kind for step in entry.steps] == ["queued", "sending", "delivered"]
    assert (entry.mode, entry.state) == ("queued", "delivered")
    folder.write(event(message, "queued", at=90.0))
    (entry,) = folder.entries()
    assert entry.state == "queued"


def test_what_is_no_message_is_passed_over(tmp_path: Path) -> None:
    """A line that was cut short, another version, a folder of somebody else."""
    folder = Folder(tmp_path)
    message, broken = made(), made()
    folder.write(event(message))
    folder.write(event(broken))
    with (tmp_path / key_of(message.message_id) / "steps").open("a") as steps:
        steps.write('{"kind": "deli')
    (tmp_path / key_of(broken.message_id) / "message.json").write_text('{"version": 99}')
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (entry,) = Folder(tmp_path).entries()
    assert entry.key == key_of(message.message_id)
    Folder(tmp_path).remove_all()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("key", ["..", "../x", "0123456789ABCDEF", "", "0123456789abcde/", "0123456789abcdef\n"])
def test_a_name_that_is_no_key_reaches_no_file(tmp_path: Path, key: str) -> None:
    folder = Folder(tmp_path / "inbox")
    folder.write(event(made()))
    (tmp_path / "x").mkdir()
    assert folder.entry(key) is None
    assert folder.load(key) is None
    folder.mark_read(key, read=True)
    folder.remove(key)
    assert len(folder.entries()) == 1
    assert list((tmp_path / "x").iterdir()) == []


async def test_a_folder_that_cannot_be_written_stops_no_mail(
    inboxes: Inboxes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    async with inboxes.open(inbox_dir=tmp_path / "file" / "inbox") as client:
        assert await send_email("a@example.test", "x", text="")
        assert keys_of((await client.get("/_mail/")).text) == []
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith('EMAIL["inbox_dir"]: ')


async def test_nothing_is_recorded_where_the_inbox_is_off(tmp_path: Path) -> None:
    end = start_recording(EmailSettings(inbox_dir=str(tmp_path)), debug=False)
    publish("sending", await make_outgoing())
    end()
    assert list(tmp_path.iterdir()) == []


def test_ending_a_recording_waits_until_everything_is_written(tmp_path: Path) -> None:
    end = start_recording(EmailSettings(inbox_dir=str(tmp_path)), debug=True)
    for number in range(10):
        publish("sending", made(subject=f"n{number}"))
    end()
    publish("sending", made(subject="after"))
    assert len(Folder(tmp_path).entries()) == 10
