"""Tokens of unsubscribe links: what they name, and which texts are none."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email.message.unsubscribe import UnsubscribeRequest, disarm_links, make_token, read_token

NEW, OLD, FOREIGN = "n" * 32, "o" * 32, "f" * 32
ANN = UnsubscribeRequest("news", address="ann@example.com")
TOKEN = make_token(ANN, NEW)

streams = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)
requests = st.tuples(streams, texts, st.none()) | st.tuples(streams, st.none(), texts)


@given(requests)
def test_a_token_names_what_it_was_made_for_in_characters_of_a_url(named: tuple[str, str | None, str | None]) -> None:
    request = UnsubscribeRequest(*named)
    token = make_token(request, NEW)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_.")
    assert read_token(token, [NEW]) == request


def test_the_first_key_signs_and_all_verify() -> None:
    """A rotation keeps links that were sent before; a key that is taken out ends its links."""
    old = make_token(ANN, OLD)
    assert old != TOKEN
    assert read_token(old, [NEW, OLD]) == read_token(TOKEN, [NEW, OLD]) == ANN
    assert read_token(old, [NEW]) is None
    assert read_token(TOKEN, [FOREIGN]) is None
    assert read_token(TOKEN, []) is None


@pytest.mark.parametrize("position", range(len(TOKEN)))
def test_no_changed_character_is_accepted(position: int) -> None:
    for other in "AbQgw5_-.":
        changed = TOKEN[:position] + other + TOKEN[position + 1 :]
        assert changed == TOKEN or read_token(changed, [NEW]) is None


@pytest.mark.parametrize("length", range(len(TOKEN)))
def test_no_truncated_or_lengthened_token_is_accepted(length: int) -> None:
    assert read_token(TOKEN[:length], [NEW]) is None
    assert read_token(TOKEN + TOKEN[length], [NEW]) is None


def test_a_signature_is_for_its_own_stream_and_recipient() -> None:
    """Its MAC with another payload is a forgery, and an id is no address."""
    mac = TOKEN.rpartition(".")[2]
    for other in (
        UnsubscribeRequest("orders", address="ann@example.com"),
        UnsubscribeRequest("news", address="ben@example.com"),
        UnsubscribeRequest("news", recipient_id="ann@example.com"),
    ):
        token = make_token(other, NEW)
        assert read_token(token, [NEW]) == other
        assert read_token(f"{token.rpartition('.')[0]}.{mac}", [NEW]) is None


@pytest.mark.parametrize("text", ["", ".", "..", "unknown", "é" * 40, TOKEN + "\n", " " + TOKEN, "A" * 10_000])
def test_other_text_is_no_token(text: str) -> None:
    assert read_token(text, [NEW]) is None


def test_links_in_a_body_are_disarmed_and_others_stay() -> None:
    own = f"https://shop.example/unsubscribe/{TOKEN}"
    body = f'<a href="{own}">leave</a> {own}. https://other.example/unsubscribe/42 https://shop.example/orders'
    dead = "https://shop.example/unsubscribe/redirected"
    assert disarm_links(body) == (
        f'<a href="{dead}">leave</a> {dead}. https://other.example/unsubscribe/42 https://shop.example/orders'
    )
    assert disarm_links(None) is None
