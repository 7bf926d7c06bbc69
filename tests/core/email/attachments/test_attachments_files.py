"""Local files: only regular ones, only inside the allowed folders, never more than one byte past the limit."""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE

from openviper.core.email.attachments import AttachmentData, resolve_attachments
from openviper.core.email.attachments.bytelimit import ByteLimit, TotalLimit
from openviper.core.email.attachments.localfile import read_file
from openviper.core.email.errors import AttachmentRefused


async def load(path: Any, **options: Any) -> bytes:
    (resolved,) = await resolve_attachments([path], **options)
    assert isinstance(resolved, AttachmentData)
    return resolved.content


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    (folder / "below").mkdir(parents=True)
    (folder / "in.txt").write_bytes(b"in")
    (folder / "below" / "deep.txt").write_bytes(b"deep")
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "out.txt").write_bytes(b"out")
    (tmp_path / "out.txt").write_bytes(b"out")
    return folder


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/dev/random", "/dev/stdin", "/dev/tty", "/", "/proc/self", "."]
)
async def test_devices_and_folders_are_refused(path: str) -> None:
    for form in (path, Path(path), ("a.txt", path), {"path": path}):
        with pytest.raises(AttachmentRefused, match=r"regular|cannot read"):
            await load(form)


async def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AttachmentRefused, match="is a FIFO"):
        await load(tmp_path / "fifo")


async def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(AttachmentRefused, match="is a socket"):
            await load(tmp_path / "socket")


async def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone")
    for path in (
        tmp_path / "gone",
        tmp_path / "file" / "x",
        tmp_path / "loop",
        tmp_path / "dangling",
        "~/x",
        "x" * 5000,
    ):
        with pytest.raises(AttachmentRefused, match=r"there is no file|cannot read"):
            await load(path)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Nobody in particular: root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_bytes(b"secret")
    path.chmod(0)
    return path


async def test_a_file_without_permission_is_refused(unreadable: Path, unprivileged: None) -> None:
    with pytest.raises(AttachmentRefused, match=r"cannot read .*: Permission denied"):
        await load(unreadable)


async def test_a_link_gives_the_content_of_its_target_under_its_own_name(allowed: Path) -> None:
    (allowed / "link.csv").symlink_to("in.txt")
    (resolved,) = await resolve_attachments([allowed / "link.csv"])
    assert resolved == AttachmentData("link.csv", b"in", "text/csv")


# Limits


async def test_a_large_file_is_not_read_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    before = bytes_read()
    with pytest.raises(AttachmentRefused, match="1000000000000 bytes"):
        await load(path)
    assert bytes_read() - before < 100_000


def bytes_read() -> int:
    with open("/proc/self/io", encoding="ascii") as file:  # noqa: PTH123
        return int(file.readline().split()[1])


class Meter(ByteLimit):
    def __init__(self, max_bytes: int) -> None:
        super().__init__("file", max_bytes, TotalLimit(None))
        self.read = 0

    def spend(self, count: int) -> None:
        self.read += count
        super().spend(count)


@pytest.mark.parametrize("max_bytes", [0, 1, 1000])
def test_a_file_that_hides_its_size_is_read_one_byte_past_the_limit(max_bytes: int) -> None:
    """Files of /proc are regular and say that they are empty."""
    meter = Meter(max_bytes)
    with pytest.raises(AttachmentRefused, match="too large"):
        read_file("/proc/kallsyms", dirs=None, limit=meter)
    assert meter.read == max_bytes + 1


def test_a_file_that_grows_is_read_one_byte_past_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10)

    class Growing(Meter):
        def announce(self, size: int) -> None:
            super().announce(size)
            with path.open("ab") as file:
                file.write(b"y" * 5_000_000)

    meter = Growing(2_000_000)
    with pytest.raises(AttachmentRefused, match="too large"):
        read_file(str(path), dirs=None, limit=meter)
    assert meter.read == 2_000_001


# Folders


async def test_paths_inside_the_folders_are_read(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (allowed / "link").symlink_to("below/deep.txt")
    (allowed.parent / "way-in").symlink_to("allowed")
    for dirs in (
        [allowed],
        [str(allowed)],
        ["/nonexistent", allowed],
        allowed,
        str(allowed),
        [allowed.parent / "way-in"],
        ["/"],
    ):
        assert await load(allowed / "in.txt", dirs=dirs) == b"in"
        assert await load(allowed / "below" / "deep.txt", dirs=dirs) == b"deep"
        assert await load(allowed / "below" / ".." / "in.txt", dirs=dirs) == b"in"
        assert await load(allowed / "link", dirs=dirs) == b"deep"
        assert await load(allowed.parent / "way-in" / "in.txt", dirs=dirs) == b"in"
    monkeypatch.chdir(allowed)
    assert await load("in.txt", dirs=["."]) == b"in"


async def test_paths_outside_the_folders_are_refused(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same words whether the file exists or not."""
    (allowed / "link").symlink_to("../out.txt")
    (allowed / "folder").symlink_to("..")
    (allowed / "dangling").symlink_to("/gone")
    monkeypatch.chdir(allowed)
    outside = ["../out.txt", "below/../../out.txt", "link", "folder/out.txt", "dangling", "/etc/passwd", "/etc/gone"]
    outside += [
        "../allowed-not/out.txt",
        "/dev/zero",
        "..",
        "folder",
        "/proc/self/environ",
        "/proc/self/cwd/../out.txt",
    ]
    for path in outside:
        for form in (path, str(allowed / path), ("a", path), {"path": path}):
            with pytest.raises(AttachmentRefused, match="outside the folders"):
                await load(form, dirs=[allowed])


async def test_without_any_folder_nothing_is_read(allowed: Path) -> None:
    with pytest.raises(AttachmentRefused, match="outside"):
        await load(allowed / "in.txt", dirs=[])
    assert await load(b"bytes", dirs=[]) == b"bytes"


@contextlib.contextmanager
def flipping_link(link: Path, *targets: str) -> Iterator[None]:
    """A second thread makes ``link`` point to one target after the other, as fast as it can."""
    stop = threading.Event()
    link.symlink_to(targets[0])

    def flip() -> None:
        for target in itertools.cycle(targets):
            if stop.is_set():
                return
            fresh = link.with_name("fresh")
            fresh.symlink_to(target)
            fresh.replace(link)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def read_again_and_again(path: Path, **options: Any) -> set[bytes | None]:
    """What was read, and None for a refusal."""
    seen: set[bytes | None] = set()
    deadline = time.monotonic() + PATIENCE
    rounds = 0
    # Often enough to meet the moment of a change, and until the thread that changes it has had its turn.
    while rounds < 3000 or (len(seen) < 2 and time.monotonic() < deadline):
        rounds += 1
        try:
            content = read_file(str(path), limit=Meter(100), **options)
            assert isinstance(content, bytes)
            seen.add(content)
        except AttachmentRefused:
            seen.add(None)
    return seen


def test_a_link_that_changes_while_it_is_read_gives_nothing_from_outside(allowed: Path) -> None:
    with flipping_link(allowed / "flipping", "in.txt", "../out.txt"):
        assert read_again_and_again(allowed / "flipping", dirs=[str(allowed)]) == {b"in", None}


def test_a_file_that_becomes_a_fifo_while_it_is_opened_is_not_waited_for(allowed: Path) -> None:
    os.mkfifo(allowed / "fifo")
    seen: list[bytes | None] = []
    with flipping_link(allowed / "flipping", "in.txt", "fifo"):
        reading = threading.Thread(
            target=lambda: seen.extend(read_again_and_again(allowed / "flipping", dirs=None)), daemon=True
        )
        reading.start()
        reading.join(PATIENCE)
    assert set(seen) == {b"in", None}
