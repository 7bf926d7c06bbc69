import asyncio
import json
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from openviper.core.email.backends.file import FileBackend
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

MakeMessage = Callable[..., OutgoingMessage]


def backend(folder: Path) -> FileBackend:
    return FileBackend(EmailSettings(file_dir=folder))


async def test_names_sort_in_the_order_of_sending(tmp_path: Path, outgoing: MakeMessage) -> None:
    async with backend(tmp_path) as files:
        for number in range(30):
            await files.send(outgoing(subject=f"Number {number:02d}"))
    subjects = [path.read_bytes().partition(b"Subject: ")[2][:9].decode() for path in sorted(tmp_path.glob("*.eml"))]
    assert subjects == [f"Number {number:02d}" for number in range(30)]


async def test_names_contain_nothing_of_the_message(tmp_path: Path, outgoing: MakeMessage) -> None:
    async with backend(tmp_path) as files:
        await files.send(outgoing(recipients=["evil@example.test"], subject="../../evil"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert all(set(name) <= set("0123456789abcdefTZ.-jsonml") for name in names)
    assert not any("evil" in name for name in names)


async def test_several_backends_share_a_folder(tmp_path: Path, outgoing: MakeMessage) -> None:
    """Write from several backends, as several processes do."""
    one, other = backend(tmp_path), backend(tmp_path)
    async with one, other:
        await asyncio.gather(*(files.send(outgoing()) for files in (one, other) for _ in range(20)))
    assert len(list(tmp_path.glob("*.eml"))) == 40


async def test_no_temporary_file_remains(tmp_path: Path, outgoing: MakeMessage) -> None:
    async with backend(tmp_path) as files:
        await files.send(outgoing())
    assert {path.suffix for path in tmp_path.iterdir()} == {".eml", ".json"}


async def test_the_envelope_is_in_a_json_file(tmp_path: Path, outgoing: MakeMessage) -> None:
    message = outgoing(bcc=["bob@example.test"], envelope_sender="bounces@example.test")
    async with backend(tmp_path) as files:
        report = await files.send(message)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text()) == {
        "message_id": message.message_id,
        "sender": "bounces@example.test",
        "recipients": ["ann@example.test", "bob@example.test"],
    }
    assert report.response == f"written to {path.stem}.eml"


async def test_only_the_owner_may_read_the_files(tmp_path: Path, outgoing: MakeMessage) -> None:
    before = os.umask(0)
    try:
        async with backend(tmp_path) as files:
            await files.send(outgoing())
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


async def test_the_folder_is_created_with_its_parents(tmp_path: Path, outgoing: MakeMessage) -> None:
    async with backend(tmp_path / "var" / "mail") as files:
        assert (tmp_path / "var" / "mail").is_dir()
        await files.send(outgoing())
    assert len(list((tmp_path / "var" / "mail").glob("*.eml"))) == 1


async def test_a_removed_folder_is_created_again(tmp_path: Path, outgoing: MakeMessage) -> None:
    async with backend(tmp_path / "mail") as files:
        (tmp_path / "mail").rmdir()
        await files.send(outgoing())
    assert len(list((tmp_path / "mail").glob("*.eml"))) == 1


async def test_a_relative_folder_stays_where_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outgoing: MakeMessage
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with backend(Path("mail")) as files:
        monkeypatch.chdir(tmp_path / "elsewhere")
        await files.send(outgoing())
    assert len(list((tmp_path / "mail").glob("*.eml"))) == 1


async def test_a_folder_that_cannot_be_created_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["file_dir"\]: cannot create the folder .*file/mail'):
        await backend(tmp_path / "file" / "mail").open()


async def test_a_failed_write_is_a_delivery_error_and_leaves_no_file(tmp_path: Path, outgoing: MakeMessage) -> None:
    folder = tmp_path / "mail"
    async with backend(folder) as files:
        folder.rmdir()
        folder.write_text("in the way")
        with pytest.raises(DeliveryError, match=r'^EMAIL\["file_dir"\]: cannot write to ') as caught:
            await files.send(outgoing())
    assert caught.value.temporary is False
    assert isinstance(caught.value.__cause__, OSError)
    assert folder.read_text() == "in the way"


async def test_an_incomplete_file_is_removed(tmp_path: Path, outgoing: MakeMessage) -> None:
    """Limit the size of files, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    message = outgoing(text="x" * 200_000)
    try:
        async with backend(tmp_path) as files:
            resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
            with pytest.raises(DeliveryError, match="File too large"):
                await files.send(message)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
