"""A framed head and its parts come back, and a frame that is cut short is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.framing import frame, read_head, read_parts


@given(head=st.binary(max_size=30), parts=st.lists(st.binary(max_size=30), max_size=4), prefix=st.binary(max_size=5))
def test_head_and_parts_come_back(head: bytes, parts: list[bytes], prefix: bytes) -> None:
    framed = frame(head, parts, prefix=prefix)
    found, begin = read_head(framed, len(prefix))
    assert found == head
    assert read_parts(framed, begin, map(len, parts)) == parts


@pytest.mark.parametrize("sizes", [[3, 3], [6], [-1]])
def test_parts_that_are_cut_short_are_refused(sizes: list[int]) -> None:
    framed = frame(b"head", [b"123", b"45"])
    with pytest.raises(ValueError, match="cut short"):
        read_parts(framed, read_head(framed)[1], sizes)


def test_the_head_of_a_damaged_frame_is_shorter_than_it_says() -> None:
    assert read_head(frame(b"head", [])[:6])[0] == b"he"
    assert read_head(b"")[0] == b""
