"""Every documented form of an attachment, their order, their limits, and what is refused."""

import asyncio
import base64
import io
import time
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.httpd import HttpServer, head
from support.patience import PATIENCE
from support.stalls import watched_loop

from openviper.core.email.attachments import AttachmentData, resolve_attachments
from openviper.core.email.attachments.bytelimit import ByteLimit, TotalLimit
from openviper.core.email.attachments.decoding import decode_base64
from openviper.core.email.attachments.mediatypes import guess
from openviper.core.email.errors import AttachmentRefused, InvalidMessage

OCTETS = "application/octet-stream"


async def one(item: Any, **options: Any) -> AttachmentData:
    (resolved,) = await resolve_attachments([item], **options)
    return resolved


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.pdf"
    path.write_bytes(b"%PDF")
    return path


@pytest.mark.parametrize("nothing", [None, [], (), iter([])])
async def test_nothing_gives_an_empty_list(nothing: Any) -> None:
    assert await resolve_attachments(nothing) == []


async def test_a_path_is_read_and_typed_by_its_suffix(report: Path) -> None:
    expected = AttachmentData("report.pdf", b"%PDF", "application/pdf")
    assert await one(str(report)) == await one(report) == await one({"path": report}) == expected
    assert await one({"path": str(report), "filename": "b.csv"}) == AttachmentData("b.csv", b"%PDF", "text/csv")


async def test_a_relative_path_starts_at_the_working_folder(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(report.parent)
    assert (await one("report.pdf")).content == b"%PDF"


async def test_a_tuple_names_bytes_a_path_or_a_url(report: Path) -> None:
    assert await one(("a.txt", b"x")) == AttachmentData("a.txt", b"x", "text/plain")
    assert await one(("a.txt", b"x", "text/csv")) == AttachmentData("a.txt", b"x", "text/csv")
    assert await one(("a", bytearray(b"x"))) == await one(("a", memoryview(b"x"))) == AttachmentData("a", b"x", OCTETS)
    assert (
        await one(("a.txt", str(report)))
        == await one(("a.txt", report))
        == AttachmentData("a.txt", b"%PDF", "text/plain")
    )
    assert await one((None, report, None)) == AttachmentData("report.pdf", b"%PDF", "application/pdf")
    async with HttpServer() as server:
        server.answer("/x.png", b"png")
        downloaded = await one(("a.gif", server.url("/x.png")), allowed_hosts=["localhost"])
    assert downloaded == AttachmentData("a.gif", b"png", "image/gif")


async def test_a_text_in_a_tuple_is_never_the_content() -> None:
    with pytest.raises(AttachmentRefused, match="there is no file 'Dear customer'"):
        await one(("letter.txt", "Dear customer"))


async def test_bytes_are_named_by_their_place_counted_from_one() -> None:
    resolved = await resolve_attachments([b"a", bytearray(b"b"), memoryview(b"c"), {"content": "d"}, (None, b"e")])
    assert [data.filename for data in resolved] == [f"attachment-{number}.bin" for number in range(1, 6)]
    assert [data.content for data in resolved] == [b"a", b"b", b"c", b"d", b"e"]
    assert {data.mimetype for data in resolved} == {OCTETS}
    assert {type(data.content) for data in resolved} == {bytes}


async def test_a_dict_holds_text_bytes_or_base64() -> None:
    assert await one({"content": "é\n", "filename": "a.csv"}) == AttachmentData(
        "a.csv", "é\n".encode(), "text/csv; charset=utf-8"
    )
    assert await one({"content": bytearray(b"x"), "filename": "a", "mimetype": "x/y"}) == AttachmentData(
        "a", b"x", "x/y"
    )
    for encoded in ("SGVsbG8=", b"SGVsbG8=", " SGVs\r\nbG8=\n"):
        assert await one({"content_b64": encoded, "filename": "a.txt"}) == AttachmentData(
            "a.txt", b"Hello", "text/plain"
        )
    inline = await one(UserDict(content=b"x", filename="l.png", inline=True, content_id="logo", url=None))
    assert inline == AttachmentData("l.png", b"x", "image/png", True, "logo")


async def test_a_url_is_named_by_its_path_and_typed_by_name_then_server() -> None:
    async with HttpServer() as server:
        served = {
            "/a/Jahres%C3%BCbersicht.pdf": ("Jahresübersicht.pdf", "application/pdf"),
            "/a.pdf?b=c/d.txt#e/f.gif": ("a.pdf", "application/pdf"),
            "/a/..%2F..%2Fetc%5Cpasswd": ("passwd", "image/png"),
            "/avatars/17": ("17", "image/png"),
            "/folder/": ("folder", "image/png"),
            "": ("attachment-1", "image/png"),
            "?a": ("attachment-1", "image/png"),
        }
        for path, expected in served.items():
            target = path.partition("#")[0].partition("?")[0] or "/"
            server.answer(target, b"x", headers={"Content-Type": "image/png"})
            data = await one(server.url(path), allowed_hosts=["localhost"])
            assert (data.filename, data.mimetype) == expected
            assert data == await one({"url": server.url(path)}, allowed_hosts=["localhost"])


async def test_one_allowed_host_may_be_given_without_a_list() -> None:
    async with HttpServer() as server:
        server.answer("/a", b"x")
        assert (await one(server.url("/a"), allowed_hosts="localhost")).content == b"x"


async def test_a_value_object_is_copied() -> None:
    given_data = AttachmentData("a.txt", b"x", "text/html", True, "id")
    resolved = await one(given_data)
    assert resolved == given_data
    assert resolved is not given_data
    assert type((await one(AttachmentData("a", bytearray(b"x")))).content) is bytes  # type: ignore[arg-type]


async def test_the_order_is_that_of_the_list_however_long_each_takes(report: Path) -> None:
    async with HttpServer() as server:
        server.answer("/slow.txt", b"slow", delay=0.2)
        server.answer("/fast.txt", b"fast")
        items: list[Any] = [server.url("/slow.txt"), report, b"bytes", server.url("/fast.txt")]
        resolved = await resolve_attachments(items, allowed_hosts=["localhost"])
    assert [data.content for data in resolved] == [b"slow", b"%PDF", b"bytes", b"fast"]


async def test_ten_urls_are_fetched_at_the_same_time() -> None:
    async with HttpServer() as server:
        asked = asyncio.Event()

        async def answer_when_all_have_asked(writer: asyncio.StreamWriter) -> None:
            if len(server.requests) == 10:
                asked.set()
            await asked.wait()
            writer.write(head(content_length=1) + b"x")

        server.respond("/a", answer_when_all_have_asked)
        urls = [server.url("/a")] * 10
        resolved = await resolve_attachments(urls, allowed_hosts=["localhost"], url_timeout=PATIENCE)
    assert [data.content for data in resolved] == [b"x"] * 10


async def test_the_first_error_surfaces_as_itself_and_cancels_the_rest(tmp_path: Path) -> None:
    async with HttpServer() as server:
        server.answer("/slow", b"x", delay=60)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(AttachmentRefused) as caught:
                await resolve_attachments([server.url("/slow"), tmp_path / "gone"], allowed_hosts=["localhost"])
    assert caught.value.filename == "gone"
    assert caught.value.__context__ is None or not isinstance(caught.value.__context__, BaseExceptionGroup)


async def test_a_wrong_item_is_found_before_anything_is_fetched() -> None:
    async with HttpServer() as server:
        with pytest.raises(AttachmentRefused, match=r"attachments\[1\]"):
            await resolve_attachments([server.url("/a"), 5], allowed_hosts=["localhost"])  # type: ignore[list-item]
        assert server.connections == 0


@pytest.mark.parametrize(
    "single",
    [
        b"x",
        bytearray(b"x"),
        memoryview(b"x"),
        {"content": "x"},
        AttachmentData("attachment-1.bin", b"x"),
        ("attachment-1.bin", b"x"),
        (None, b"x"),
        ("attachment-1.bin", b"x", OCTETS),
        io.BytesIO(b"x"),
        lambda: b"x",
        "data:application/octet-stream,x",
    ],
)
async def test_a_single_item_is_taken_as_a_list_of_one(single: Any) -> None:
    assert await resolve_attachments(single) == [AttachmentData("attachment-1.bin", b"x", OCTETS)]


async def test_a_single_path_is_taken_as_a_list_of_one(report: Path) -> None:
    expected = [AttachmentData("report.pdf", b"%PDF", "application/pdf")]
    assert await resolve_attachments(report) == await resolve_attachments(str(report)) == expected
    assert await resolve_attachments((report,)) == expected


@pytest.mark.parametrize("pair", [("a.txt", "b.txt"), ("a.txt", Path("b.txt")), (None, "b.txt"), ("a", "b", "c/d")])
async def test_a_bare_pair_of_a_name_and_a_path_is_ambiguous(pair: Any) -> None:
    with pytest.raises(InvalidMessage, match=r"write \[\(filename, path\)\] or \[path, path\]"):
        await resolve_attachments(pair)


@pytest.mark.parametrize("wrong", [5, object(), 1.5])
async def test_neither_a_list_nor_an_item_is_an_error(wrong: Any) -> None:
    with pytest.raises(InvalidMessage, match="attachments: must be an attachment or a list of them, not"):
        await resolve_attachments(wrong)


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"a.txt"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (BytesPath(), "path is not text"),
        (5, "type int"),
        (None, "type NoneType"),
        (io.StringIO("x"), 'open it in binary mode ("rb")'),
        (("a.csv", io.StringIO("x")), 'open it in binary mode ("rb")'),
        (io.BytesIO, "type type"),
        (["a.txt", b"x"], "type list"),
        ((), "tuple of 0"),
        (("a.txt",), "tuple of 1"),
        (("a.txt", b"x", "x/y", 1), "tuple of 4"),
        (("a.txt", None), "type NoneType"),
        (("a.txt", 5), "type int"),
        ((5, b"x"), "must be a str, not int"),
        (("", b"x"), "filename is empty"),
        (("application/pdf", b"x"), "filename 'application/pdf' is a media type"),
        (("Text/CSV", "no-such-file.csv"), "filename 'Text/CSV' is a media type"),
        (("image/png", b"x", "logo.png"), "filename 'image/png' is a media type"),
        ({"content": "x", "filename": "text/html; charset=utf-8"}, "is a media type; write"),
        (("application/vnd.ms-excel", b"x"), "is a media type"),
        (("a", b"x", 5), "mimetype 5"),
        (("a", b"x", ""), "mimetype ''"),
        (("a", b"x", "text"), "type/subtype, such as application/pdf"),
        (("a", b"x", "text/plain\r\nBcc: x"), "type/subtype"),
        (("a", b"x", "text/plain; charset=x\r\nBcc: x"), "type/subtype"),
        (("a", b"x", "multipart/mixed"), "multipart messages"),
        (("a\r\nBcc: x", b"x"), "control character"),
        (("a\0", b"x"), "control character"),
        (("a\x85", b"x"), "control character"),
        ("https://public.example/a%0D%0ABcc:%20x", "control character"),
        ("", "path is empty"),
        ("a\0b", "NUL"),
        (("a", ""), "path is empty"),
        ({}, "it has none"),
        ({"filename": "a"}, "it has none"),
        ({"content": None}, "it has none"),
        ({"content": b"x", "path": "a"}, "path and content"),
        ({"content": b"x", "content_b64": ""}, "content and content_b64"),
        ({"contents": b"x"}, "unknown key 'contents'; did you mean 'content'"),
        ({"content": b"x", "name": "a"}, "did you mean 'filename'"),
        ({"content": b"x", "Content-Type": "a"}, "did you mean 'mimetype"),
        ({"content": b"x", "mime_type": "a/b"}, "did you mean 'mimetype'"),
        ({"content": b"x", "zzz": "a/b"}, "the keys are path, url"),
        ({"content": b"x", 5: "a/b"}, "unknown key 5"),
        ({"content": 5}, "content cannot be of the type int"),
        ({"content": Path("a")}, "content cannot be of the type"),
        ({"content": "\ud800"}, "not valid text"),
        ({"path": b"a"}, "path cannot be of the type bytes"),
        ({"path": "\ud800"}, "control character"),
        ({"url": "a.txt"}, "must begin with http"),
        ({"url": "http:public.example"}, "must begin with http"),
        ({"url": b"http://public.example"}, "url cannot be"),
        ({"url": "ftp://public.example/a"}, "scheme 'ftp'"),
        ({"content": b"x", "inline": 1}, "inline must be True or False"),
        ({"content": b"x", "content_id": 1}, "content_id must be a str"),
        ({"content_b64": 5}, "content_b64 cannot be"),
        (AttachmentData("a", "text"), "must be bytes"),  # type: ignore[arg-type]
        (AttachmentData("", b""), "filename is empty"),
        (AttachmentData("a", b"", "nonsense"), "type/subtype"),
        (AttachmentData("a", None), "it has none"),  # type: ignore[arg-type]
    ],
)
async def test_what_is_not_a_documented_form_is_refused(item: Any, reason: str) -> None:
    with pytest.raises(AttachmentRefused) as caught:
        await one(item)
    assert reason in str(caught.value)
    assert isinstance(caught.value, ValueError)


# Limits


async def test_every_form_has_the_same_limit(tmp_path: Path) -> None:
    """Ten bytes pass and eleven do not."""
    path = tmp_path / "a.txt"
    async with HttpServer() as server:
        for size in (10, 11):
            path.write_bytes(b"x" * size)
            server.answer("/a", b"x" * size)
            content = b"x" * size
            forms: list[Any] = [
                path,
                server.url("/a"),
                content,
                ("a", content),
                {"content": content},
                AttachmentData("a", content),
            ]
            forms += [{"content": "x" * size}, {"content": "é" * (size // 2) + "x" * (size % 2)}]
            forms += [{"content_b64": base64.b64encode(content)}]
            for form in forms:
                options = {"max_bytes": 10, "allowed_hosts": ["localhost"]}
                if size == 10:
                    assert len((await one(form, **options)).content) == 10
                else:
                    with pytest.raises(AttachmentRefused, match="max_attachment_bytes"):
                        await one(form, **options)


async def test_the_sum_has_its_own_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 10)
    async with HttpServer() as server:
        server.answer("/a", b"x" * 10)
        items: list[Any] = [path, server.url("/a"), b"x" * 10, {"content": "x" * 10}]
        options: dict[str, Any] = {"max_bytes": 10, "allowed_hosts": ["localhost"]}
        assert len(await resolve_attachments(items, max_total_bytes=40, **options)) == 4
        for limit in (39, 15, 0):
            with pytest.raises(AttachmentRefused, match="all attachments together"):
                await resolve_attachments(items, max_total_bytes=limit, **options)


async def test_empty_content_is_valid(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with HttpServer() as server:
        server.answer("/empty")
        items: list[Any] = [
            tmp_path / "empty",
            server.url("/empty"),
            b"",
            ("a", b""),
            {"content": ""},
            {"content_b64": ""},
        ]
        resolved = await resolve_attachments(items, max_bytes=0, max_total_bytes=0, allowed_hosts=["localhost"])
    assert [data.content for data in resolved] == [b""] * 6


# Base64


def limit(max_bytes: int = 10_000_000) -> ByteLimit:
    return ByteLimit("a", max_bytes, TotalLimit(None))


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 400), st.sampled_from(" \t\r\n")), max_size=9))
def test_base64_with_white_space_anywhere_is_decoded(content: bytes, spaces: list[tuple[int, str]]) -> None:
    encoded = base64.b64encode(content).decode()
    for position, space in spaces:
        encoded = encoded[:position] + space + encoded[position:]
    assert decode_base64(encoded, limit()) == content


@pytest.mark.parametrize("size", [196_605, 196_606, 196_607, 196_608, 196_609, 393_216, 1_000_000])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
def test_base64_of_many_slices_is_decoded(size: int, encode: Any) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    assert decode_base64(encode(content[:size]), limit()) == content[:size]


@pytest.mark.parametrize(
    "encoded",
    [
        *("S", "SG", "SGV", "SGVsb", "=", "====", "A===", "SGVs=", "SGVsbG8", "SGVsbG8==", "SGVsbG8=x", "SG=sbG8="),
        *("SGVsbG8=SGVs", "SGVs-_8=", "SGVs!G8=", "SGVs\u00e9", "data:text/plain;base64,SGVsbG8="),
        *("A" * 262_140 + "AA==" + "AAAA", "A" * 262_145),
    ],
    ids=lambda encoded: encoded[-20:],
)
async def test_bad_base64_is_an_error(encoded: str) -> None:
    with pytest.raises(AttachmentRefused, match="not base64"):
        await one({"content_b64": encoded, "filename": "a.txt"})


async def test_large_text_and_base64_leave_the_loop_free() -> None:
    size = 20_000_000
    encoded = base64.b64encode(b"x" * size).decode()
    begin = time.thread_time()
    base64.b64decode(encoded)
    at_once = time.thread_time() - begin
    async with watched_loop(time.thread_time) as watch:
        await resolve_attachments([{"content_b64": encoded}, {"content": "y" * size}])
    assert 0 < watch.longest < at_once / 2, f"{watch.longest:.3f} s, decoding takes {at_once:.3f} s"


# MIME types


@pytest.mark.parametrize(
    ("filename", "mimetype"),
    [
        ("a.PDF", "application/pdf"),
        ("a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("a.tar.gz", "application/gzip"),
        ("a.txt.gz", "application/gzip"),
        ("a.tgz", "application/gzip"),
        ("a.ics", "text/calendar"),
        ("a.md", "text/markdown"),
        ("a.webp", "image/webp"),
        ("a.svg", "image/svg+xml"),
        ("a.jpeg", "image/jpeg"),
        ("a.html", "text/html"),
        ("a.eml", "message/rfc822"),
        ("a.unknown", OCTETS),
        ("a", OCTETS),
        ("pdf", OCTETS),
        (".pdf", OCTETS),
        ("data:text/html,x", OCTETS),
        ("data:text/html,x.txt", "text/plain"),
    ],
)
def test_a_file_name_suggests_the_type(filename: str, mimetype: str) -> None:
    assert guess(filename) == mimetype


@pytest.mark.parametrize(
    ("item", "mimetype"),
    [
        ({"content": "é", "filename": "a.csv"}, "text/csv; charset=utf-8"),
        ({"content": "é", "filename": "a", "mimetype": "Text/Plain"}, "Text/Plain; charset=utf-8"),
        ({"content": "é", "filename": "a", "mimetype": "text/plain; Charset=x"}, "text/plain; Charset=x"),
        ({"content": "é", "filename": "a.json"}, "application/json"),
        ({"content": "e", "filename": "a.csv"}, "text/csv"),
        ({"content": "é".encode("latin-1"), "filename": "a.csv"}, "text/csv"),
    ],
)
async def test_text_that_is_encoded_here_says_how(item: dict[str, Any], mimetype: str) -> None:
    """Bytes say nothing: how they were encoded is known to the application only."""
    (attachment,) = await resolve_attachments([item])
    assert attachment.mimetype == mimetype


def test_the_repr_of_an_attachment_does_not_hold_the_whole_file() -> None:
    shown = repr(AttachmentData("a.csv", b"row of a customer\n" * 10_000, "text/csv"))
    assert shown.startswith("AttachmentData(filename='a.csv', content=b'row of a customer")
    assert len(shown) < 300
