"""Checks of line ends, pieces of content, and dot-stuffing."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email.backends.smtp.content import DotStuffer, check_content, pieces
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import CleanChunks, Content, EmailMessageData, check_message
from openviper.core.email.message.serialiser import serialise
from openviper.core.email.message.transfer_encodings import base64_slices

line_bytes = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"a", b"\r\n.", b"\r\n.\r\n"]), max_size=30)


@given(line_bytes, st.lists(st.integers(0, 60), max_size=8))
def test_dots_are_doubled_wherever_the_pieces_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts) + b"\r\n"
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stuffer = DotStuffer()
    wire = b"".join(stuffer.stuff(text[a:b]) for a, b in pairwise(edges)) + stuffer.end()
    lines = wire.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert b"." not in lines[:-2]
    assert b"\r\n".join(line.removeprefix(b".") for line in lines[:-2]) + b"\r\n" == text


def test_empty_content_ends_with_a_lone_dot() -> None:
    assert DotStuffer().end() == b".\r\n"


def test_a_last_line_without_a_line_end_gets_one_before_the_dot() -> None:
    stuffer = DotStuffer()
    assert stuffer.stuff(b"text") + stuffer.end() == b"text\r\n.\r\n"


@given(st.lists(st.binary(max_size=200_000), max_size=6), st.data())
def test_pieces_are_the_content_between_two_bytes(content: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(content)
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    cut = list(pieces(content, begin, end))
    assert b"".join(cut) == whole[begin:end]
    assert all(0 < len(piece) <= 65536 for piece in cut)


def test_large_chunks_are_cut_without_a_copy() -> None:
    content = bytes(10_000_000)
    assert all(piece.obj is content for piece in list(pieces([content], 0, len(content)))[:-1])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [
        (b"a\nb\r\n",),
        (b"a\rb\r\n",),
        (b"a\n.\r\n",),
        (b"a\r\n.\r\r\n",),
        (b"a\r", b"b\r\n"),
        (b"a\r\n", b"\n"),
        (b"a\n\rb\r\n",),
        (b"\r\n" * 600_000 + b"\n\r\n",),
    ],
    ids=range(8),
)
async def test_a_bare_cr_or_lf_is_refused(content: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidMessage, match="CR or LF"):
        await check_content(content)


@pytest.mark.parametrize("content", [(b"a",), (b"a\r\n", b"b"), (b"a\r\n", b"b", b"")])
async def test_a_last_line_without_a_line_end_is_refused(content: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidMessage, match="last line"):
        await check_content(content)


@given(line_bytes, st.lists(st.integers(0, 60), max_size=8))
async def test_a_line_end_may_lie_across_chunks(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts) + b"\r\n"
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    content = [text[a:b] for a, b in pairwise(edges)]
    assert await check_content(content) == len(text)


async def test_an_encoded_chunk_is_not_checked_and_separates_its_neighbours() -> None:
    (slice_,) = base64_slices(b"attached")
    assert await check_content(Content([b"a\r\n\r\n", slice_, b"\r\n"])) == 19
    with pytest.raises(InvalidMessage, match="CR or LF"):
        await check_content(Content([b"a\r", slice_, b"\n"]))
    with pytest.raises(InvalidMessage, match="last line"):
        await check_content(Content([b"a\r\n", slice_]))


async def test_only_the_serialisers_own_chunks_are_not_checked() -> None:
    data = EmailMessageData(recipients="a@example.com", subject="s", text="t\rt\nt", sender="b@example.com")
    content = serialise(check_message(data, default_sender=None))
    assert isinstance(content, CleanChunks)
    assert await check_content(content) == len(content[0])
    assert await check_content([*content]) == len(content[0])  # checked, and valid
    with pytest.raises(InvalidMessage, match="CR or LF"):
        await check_content([content[0] + b"\n"])


async def test_empty_content_is_valid() -> None:
    assert await check_content(()) == 0
