"""Reading of replies: complete, in pieces, too long, and invalid."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email.backends.smtp.replies import Reply, ReplyReader, reply_text


def test_a_multiline_reply_becomes_one_line() -> None:
    (reply,) = ReplyReader().feed(b"250-first\r\n250-second\r\n250 third\r\n")
    assert reply == Reply(250, "first second third")


def test_a_code_alone_and_a_bare_line_feed_are_accepted() -> None:
    assert ReplyReader().feed(b"250\r\n354 go\n") == [Reply(250, ""), Reply(354, "go")]


@given(st.data())
def test_replies_do_not_depend_on_how_the_stream_is_cut(data: st.DataObject) -> None:
    stream = b"250-one\r\n250 two\r\n550 5.1.1 no such user\r\n354\r\n421 bye\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = ReplyReader()
    pieces = [stream[a:b] for a, b in pairwise((0, *cuts, len(stream)))]
    replies = [reply for piece in pieces for reply in reader.feed(piece)]
    assert [reply.code for reply in replies] == [250, 550, 354, 421]
    assert reader.fault is None


@pytest.mark.parametrize(
    "stream",
    [
        b"hello\r\n",
        b"\r\n",
        b"25 ok\r\n",
        b"150 ok\r\n",
        b"650 ok\r\n",
        b"2500 ok\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250-one\r\n550 two\r\n",
        b"\xff\xfe\r\n",
        b"250 " + b"x" * 5000 + b"\r\n",
        b"x" * 5000,
        b"250-a\r\n" * 200,
    ],
    ids=range(12),
)
def test_an_invalid_reply_is_a_fault(stream: bytes) -> None:
    reader = ReplyReader()
    assert reader.feed(stream) == []
    assert reader.fault


def test_a_line_without_an_end_is_a_fault_before_it_fills_the_memory() -> None:
    reader = ReplyReader()
    for _ in range(4):
        assert reader.feed(b"2" * 1000) == []
        assert reader.fault is None
    assert reader.feed(b"2" * 1000) == []
    assert reader.fault is not None
    assert "does not end" in reader.fault


def test_replies_before_an_invalid_one_are_returned() -> None:
    reader = ReplyReader()
    assert reader.feed(b"250 ok\r\nnonsense\r\n250 late\r\n") == [Reply(250, "ok")]
    assert reader.fault


@given(st.binary(max_size=3000))
def test_server_text_is_shown_on_one_short_line(text: bytes) -> None:
    shown = reply_text(text)
    assert len(shown) <= 500
    assert shown.isprintable() or not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    assert len(shown.splitlines()) <= 1
