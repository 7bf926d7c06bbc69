"""Uploads, files, async iterators, functions, messages and data: URLs as attachments."""

import asyncio
import functools
import gc
import io
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import EmailMessage, Message
from email.policy import SMTP
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import Any

import aiofiles  # type: ignore[import-untyped]
import pytest
import werkzeug.datastructures
from litestar.datastructures import UploadFile as LitestarUpload
from starlette.datastructures import Headers, UploadFile
from support.patience import PATIENCE
from support.stalls import watched_loop
from werkzeug.datastructures import FileStorage

from openviper.core.email import EmailMessageData
from openviper.core.email.attachments import AttachmentData, FileContent, resolve_attachments
from openviper.core.email.errors import AttachmentRefused
from openviper.core.email.message import build_message

MB = 1024 * 1024
OCTETS = "application/octet-stream"


async def one(item: Any, **options: Any) -> AttachmentData:
    (resolved,) = await resolve_attachments([item], **options)
    return resolved


async def refusal(item: Any, **options: Any) -> AttachmentRefused:
    with pytest.raises(AttachmentRefused) as caught:
        await one(item, **options)
    return caught.value


def starlette_upload(content: bytes = b"%PDF", name: str | None = "a.pdf", mimetype: str = "text/html") -> UploadFile:
    return UploadFile(io.BytesIO(content), filename=name, headers=Headers({"content-type": mimetype}))


_litestar_uploads: list[LitestarUpload] = []


@pytest.fixture(autouse=True)
def _close_uploads() -> Iterator[None]:
    """Close them as Litestar does: they warn otherwise."""
    yield
    while _litestar_uploads:
        _litestar_uploads.pop().file.close()


def litestar_upload(content: bytes = b"%PDF", name: str = "a.pdf", mimetype: str = "text/html") -> LitestarUpload:
    upload = LitestarUpload(mimetype, name, content)
    _litestar_uploads.append(upload)
    return upload


def werkzeug_upload(content: bytes = b"%PDF", name: str = "a.pdf", mimetype: str = "text/html") -> FileStorage:
    return FileStorage(io.BytesIO(content), filename=name, name="field", content_type=mimetype)


UPLOADS: list[Callable[..., Any]] = [starlette_upload, litestar_upload, werkzeug_upload]


async def pieces_of(*pieces: Any) -> AsyncIterator[Any]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


# Uploads


@pytest.mark.parametrize("upload", UPLOADS)
async def test_an_upload_brings_its_name_and_its_type_where_the_name_says_none(upload: Callable[..., Any]) -> None:
    assert await one(upload()) == AttachmentData("a.pdf", b"%PDF", "application/pdf")
    assert await one(upload(name="a")) == AttachmentData("a", b"%PDF", "text/html")
    assert await one(("b.csv", upload())) == AttachmentData("b.csv", b"%PDF", "text/csv")
    assert await one(("b", upload(), "x/y")) == AttachmentData("b", b"%PDF", "x/y")
    chosen = {"content": upload(), "filename": "c.png", "inline": True, "content_id": "c"}
    assert await one(chosen) == AttachmentData("c.png", b"%PDF", "image/png", True, "c")


@pytest.mark.parametrize("upload", UPLOADS)
async def test_an_upload_is_attached_whole_wherever_it_stands(upload: Callable[..., Any]) -> None:
    """An application that has looked at the beginning, or at all of it, attaches all of it, twice if it says so."""
    given = upload(b"0123456789")
    read = given.read(4)
    if asyncio.iscoroutine(read):
        read = await read
    assert read == b"0123"
    first, second = await resolve_attachments([given, ("again.pdf", given)])
    assert first.content == second.content == b"0123456789"
    assert (await one(given)).content == b"0123456789"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("C:\\fakepath\\a.pdf", "a.pdf"),
        ("../../etc/a.pdf", "a.pdf"),
        ("/x/", "attachment-1.bin"),
        ("", "attachment-1.bin"),
    ],
)
async def test_of_an_uploads_path_only_the_last_part_is_the_name(name: str, expected: str) -> None:
    assert (await one(starlette_upload(name=name))).filename == expected


async def test_an_upload_without_a_name_is_numbered() -> None:
    assert await one(starlette_upload(name=None)) == AttachmentData("attachment-1.bin", b"%PDF", "text/html")


@pytest.mark.parametrize("declared", ["multipart/mixed", "message/rfc822", "nonsense", "text/html\r\nBcc: x", ""])
async def test_a_declared_type_that_no_file_can_have_is_ignored(declared: str) -> None:
    upload = FileStorage(io.BytesIO(b"x"), filename="a", headers=werkzeug.datastructures.Headers())
    upload.headers["Content-Type"] = declared.replace("\r\n", " ")
    assert await one(upload) == AttachmentData("a", b"x", OCTETS)
    assert (await one(starlette_upload(name="a", mimetype=declared))).mimetype == OCTETS


async def test_a_type_may_stand_in_the_headers_and_the_file_below_the_upload() -> None:
    class Upload:
        def __init__(self) -> None:
            self.file, self.filename, self.headers = io.BytesIO(b"x"), "a", {"content-type": "image/png; q=1"}

    assert await one(Upload()) == AttachmentData("a", b"x", "image/png")


@pytest.mark.parametrize("upload", [starlette_upload, litestar_upload])
async def test_a_closed_upload_says_so(upload: Callable[..., Any]) -> None:
    given = upload()
    await given.close()
    assert "is closed; send while it is open (frameworks close uploads" in str(await refusal(given))


# Files


async def test_a_file_is_read_from_its_beginning_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.seek(7)
        assert await one(file) == AttachmentData("a.csv", b"0123456789", "text/csv")
        assert file.tell() == 7
    assert str(await refusal(file)).startswith("attachment 'a.csv': is closed")
    with path.open(encoding="ascii") as text:
        assert 'open it in binary mode ("rb")' in str(await refusal(text))
    async with aiofiles.open(path, "rb") as opened:
        await opened.seek(3)
        assert (await one(opened)).content == b"0123456789"
        assert await opened.tell() == 3


async def test_a_buffer_is_attached_whole_after_it_was_written() -> None:
    buffer = io.BytesIO()
    buffer.write(b"written")
    assert (await one(("a", buffer))).content == b"written"
    buffer.close()
    assert "is closed" in str(await refusal(buffer))


async def test_files_without_a_name_are_numbered() -> None:
    with TemporaryFile() as file, SpooledTemporaryFile() as spooled:
        file.write(b"x")
        spooled.write(b"y")
        first, second = await resolve_attachments([file, spooled])
    assert (first.filename, first.content) == ("attachment-1.bin", b"x")
    assert (second.filename, second.content) == ("attachment-2.bin", b"y")


async def test_a_pipe_is_read_as_far_as_it_goes() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"piped")
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert await one(file) == AttachmentData("attachment-1.bin", b"piped", OCTETS)


async def test_a_pipe_without_data_is_no_end() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as file, os.fdopen(writer, "wb"):
        assert "it is in non-blocking mode" in str(await refusal(file))


async def test_a_plain_read_runs_in_a_thread() -> None:
    class Source:
        threads: list[threading.Thread] = []  # noqa: RUF012

        def read(self, size: int) -> bytes:
            self.threads.append(threading.current_thread())
            return b"" if len(self.threads) > 1 else b"x"

    assert (await one(Source())).content == b"x"
    assert threading.main_thread() not in Source.threads
    assert len(Source.threads) == 2


async def test_two_messages_may_read_one_file_at_the_same_time() -> None:
    content = os.urandom(3 * MB)
    with TemporaryFile() as file:
        file.write(content)
        loaded = await asyncio.gather(*(resolve_attachments([file, file]) for _ in range(5)))
    assert {data.content == content for message in loaded for data in message} == {True}


async def test_what_a_source_raises_is_chained_and_not_quoted() -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def read(self, size: int) -> bytes:
            raise self.error

    error = await refusal(Broken(RuntimeError("secret=1")))
    assert "cannot be read (RuntimeError)" in str(error)
    assert "secret" not in str(error)
    assert isinstance(error.__cause__, RuntimeError)
    assert "No such device" in str(await refusal(Broken(OSError(6, "No such device"))))
    assert "gives int instead of bytes" in str(await refusal(pieces_of(5)))


# Async iterators


async def test_the_pieces_of_an_async_iterator_are_joined() -> None:
    assert await one(pieces_of(b"a", bytearray(b"b"), memoryview(b"c"), b"")) == AttachmentData(
        "attachment-1.bin", b"abc", OCTETS
    )
    assert await one(("a.txt", pieces_of(b"a"))) == AttachmentData("a.txt", b"a", "text/plain")
    assert await one({"content": pieces_of(), "filename": "e.txt"}) == AttachmentData("e.txt", b"", "text/plain")
    assert "open it in binary mode" in str(await refusal(pieces_of("text")))


async def test_an_async_generator_is_closed_where_it_passes_the_limit() -> None:
    ended: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        given = 0
        try:
            while True:
                given += 1
                yield b"x" * 10
        finally:
            ended.append(given)

    error = await refusal(endless(), max_bytes=25)
    assert 'the limit is 25 bytes (EMAIL["max_attachment_bytes"])' in str(error)
    assert error.too_large
    assert ended == [3]
    error = await refusal(endless(), max_total_bytes=15)
    assert 'EMAIL["max_message_bytes"]' in str(error)
    assert ended == [3, 2]


async def test_a_stream_is_read_one_byte_past_its_limit_at_most() -> None:
    class Counting(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    endless = Counting()
    assert "is too large" in str(await refusal(endless, max_bytes=3 * MB))
    assert endless.given == 3 * MB + 1


# Functions


async def test_a_plain_function_is_called_once_in_a_thread() -> None:
    calls: list[threading.Thread] = []

    def make(name: str = "") -> bytes:
        calls.append(threading.current_thread())
        return b"made" + name.encode()

    first, second = await resolve_attachments([("a.pdf", make), functools.partial(make, "2")])
    assert first == AttachmentData("a.pdf", b"made", "application/pdf")
    assert second == AttachmentData("attachment-2.bin", b"made2", OCTETS)
    assert len(calls) == 2
    assert threading.main_thread() not in calls


async def test_an_async_function_is_awaited_on_the_loop() -> None:
    loop = asyncio.get_running_loop()

    async def make() -> bytes:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        return b"made"

    class Callable:
        async def __call__(self) -> bytes:
            return await make()

    assert (await one(make)).content == (await one(Callable())).content == b"made"
    assert (await one(lambda: make())).content == b"made"
    assert (await one(functools.partial(pieces_of, b"a", b"b"))).content == b"ab"


async def test_a_function_may_return_what_an_item_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"x")
    expected = AttachmentData("a.csv", b"x", "text/csv")
    opened: list[Any] = []

    def open_file() -> Any:
        opened.append(path.open("rb"))
        return opened[0]

    assert await one(lambda: path) == await one(lambda: str(path)) == await one(open_file) == expected
    assert opened[0].closed, "nobody else could close it"
    assert await one(lambda: "data:text/csv,x") == AttachmentData("attachment-1.csv", b"x", "text/csv")
    assert (await one(lambda: starlette_upload())).filename == "a.pdf"


async def test_a_function_is_called_only_when_all_items_are_well_formed() -> None:
    called: list[int] = []
    with pytest.raises(AttachmentRefused, match="type int"):
        await resolve_attachments([lambda: called.append(1), 5])  # type: ignore[list-item]
    assert called == []


async def test_what_a_function_may_not_return_is_refused() -> None:
    for value in (5, None, lambda: b"x", {"path": "a"}, ("a", b"x")):
        assert "its function returned" in str(await refusal(lambda value=value: value))
    error = await refusal(("a.pdf", lambda: 1 / 0))
    assert "'a.pdf': its function raised ZeroDivisionError" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert "limit is 3 bytes" in str(await refusal(lambda: b"four", max_bytes=3))


async def test_a_function_whose_iterator_is_exhausted_does_not_wait_for_ever() -> None:
    async with asyncio.timeout(PATIENCE):
        error = await refusal(("a.pdf", lambda: next(iter(()))))
    assert "'a.pdf': its function raised StopIteration" in str(error)


async def test_a_coroutine_says_what_to_give_instead() -> None:
    async def make() -> bytes:
        return b""

    assert "is a coroutine; await it, or give the function itself" in str(await refusal(make()))
    assert "is a coroutine" in str(await refusal(("a", make())))
    with pytest.raises(AttachmentRefused, match="is a coroutine; await it"):
        await resolve_attachments(make())  # type: ignore[arg-type]


# Messages


def a_message(policy: Any = None) -> EmailMessage:
    message = EmailMessage() if policy is None else EmailMessage(policy)
    message["Subject"] = "Grüße"
    message["From"] = "a@example.com"
    message.set_content("Größe\nFrom here on\n", cte="8bit")
    return message


async def test_a_message_is_attached_as_one() -> None:
    attached = await one(a_message())
    assert (attached.filename, attached.mimetype) == ("attachment-1.eml", "message/rfc822")
    assert attached.content.isascii()
    assert b"\n" not in attached.content.replace(b"\r\n", b"")
    named = await one(("report.pdf", a_message(SMTP)))
    assert (named.filename, named.mimetype) == ("report.pdf", "message/rfc822")
    assert (await one(("a.eml", a_message(), OCTETS))).mimetype == OCTETS
    built = build_message(
        EmailMessageData(["b@example.com"], "Forward", text="See below", sender="c@example.com", attachments=[attached])
    )
    (part,) = built.iter_attachments()
    inner = part.get_content()
    assert part.get_content_type() == "message/rfc822"
    assert (inner["Subject"], inner.get_content()) == ("Grüße", "Größe\nFrom here on\n")


async def test_a_message_of_the_older_interface_is_attached_too() -> None:
    message = Message()
    message["Subject"] = "old"
    message.set_payload("From the start\n")
    assert (await one(message)).content == b"Subject: old\r\n\r\nFrom the start\r\n"


async def test_a_message_that_cannot_be_written_is_refused() -> None:
    message = a_message()
    message.set_param("charset", "no-such-charset")
    message.set_payload("ä\udce4")
    assert "the message cannot be written as bytes" in str(await refusal(message))
    assert "limit is 10 bytes" in str(await refusal(a_message(), max_bytes=10))


# data: URLs (RFC 2397)


@pytest.mark.parametrize(
    ("url", "content", "mimetype", "suffix"),
    [
        ("data:,A%20brief%20note", b"A brief note", "text/plain; charset=US-ASCII", ".txt"),
        ("data:text/plain;charset=iso-8859-7,%be%fg%be", b"\xbe%fg\xbe", "text/plain; charset=iso-8859-7", ".txt"),
        ("data:;charset=utf-8,%C3%A4", "ä".encode(), "text/plain; charset=utf-8", ".txt"),
        ("DATA:image/png;base64,iVBORw==", b"\x89PNG", "image/png", ".png"),
        ("data:image/png;base64,iVBO%0ARw%3D%3D", b"\x89PNG", "image/png", ".png"),
        ("data:;base64,eA==", b"x", "text/plain; charset=US-ASCII", ".txt"),
        ("data:image/svg+xml;utf8,<svg a=','/>", b"<svg a=','/>", "image/svg+xml", ".svg"),
        ("data:application/x-unknown,a", b"a", "application/x-unknown", ".bin"),
    ],
)
async def test_a_data_url_is_decoded(url: str, content: bytes, mimetype: str, suffix: str) -> None:
    assert await one(url) == await one({"url": url}) == AttachmentData(f"attachment-1{suffix}", content, mimetype)
    assert (await one(("a.gif", url))).mimetype == "image/gif"
    assert (await one(("a", url))) == AttachmentData("a", content, mimetype)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64,iVBORw", "its data: URL is not base64"),
        ("data:image/png;base64,secret!!", "not base64"),
        ("data:multipart/mixed,secret", "a media type that a file cannot have"),
        ("data:nonsense,secret", "a media type that a file cannot have"),
        ("data:text/html%0D%0ABcc:x,secret", "a media type that a file cannot have"),
        ("data:" + "a" * 2000 + ",secret", "no comma"),
        ("data:,12345678901", "limit is 10 bytes"),
        ("data:;base64,MTIzNDU2Nzg5MDE=", "limit is 10 bytes"),
    ],
)
async def test_a_wrong_data_url_is_refused_without_showing_it(url: str, reason: str) -> None:
    error = await refusal(url, max_bytes=10)
    assert reason in str(error)
    assert "secret" not in str(error)
    assert "has no comma" in str(await refusal({"url": "data:text/plain"}))


# Large ones


def unlinked_files() -> int:
    """Count the open files that have no name any more, as temporary ones."""
    descriptors = Path("/proc/self/fd").iterdir()
    return sum(each.is_symlink() and str(each.readlink()).endswith("(deleted)") for each in descriptors)


async def test_what_is_larger_than_a_megabyte_is_kept_in_a_file_and_ends_with_it(tmp_path: Path) -> None:
    content = os.urandom(MB + 1)
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    gc.collect()  # what other tests have left
    open_before = unlinked_files()
    with path.open("rb") as file:
        forms: list[Any] = [path, file, starlette_upload(content), pieces_of(content[:7], content[7:]), lambda: path]
        large = await resolve_attachments(forms)
        small = await resolve_attachments([starlette_upload(content[:MB]), lambda: content])
    assert {type(data.stored) for data in large} == {FileContent}
    assert {type(data.stored) for data in small} == {bytes}
    assert {data.size for data in large} == {MB + 1}
    assert all([await asyncio.to_thread(getattr, data, "content") == content for data in large])
    changed = large[0]
    changed.content = b"another"
    assert (changed.content, changed.size) == (b"another", 7)
    (again,) = await resolve_attachments([large[1]])
    assert again.stored is large[1].stored
    del large, changed, again
    gc.collect()
    assert unlinked_files() == open_before


async def test_without_room_for_temporary_files_the_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(2 * MB))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    for form in (path, pieces_of(bytes(2 * MB)), starlette_upload(bytes(2 * MB)), lambda: path):
        error = await refusal(("a.bin", form))
        assert "cannot be kept in a temporary file: No such file or directory; set TMPDIR" in str(error)
    assert (await one(pieces_of(bytes(MB)))).size == MB


async def test_the_loop_goes_on_while_a_large_stream_is_read_and_dropped() -> None:
    piece = os.urandom(MB)

    async def many() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield piece

    async with watched_loop() as watch:
        (data,) = await resolve_attachments([many()], max_bytes=100 * MB)
        assert data.size == 40 * MB
        turns = watch.turns
        del data
    assert turns > 0
