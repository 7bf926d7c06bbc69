"""Headers of the application: which names have a syntax of their own, which are taken, and exact limits."""

import pytest

from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.validation import checked_headers, is_message_id

WITHOUT_ENCODED_WORDS = [
    "ARC-Seal",
    "Authentication-Results",
    "Auto-Submitted",
    "Autocrypt",
    "DKIM-Signature",
    "Expires",
    "Feedback-ID",
    "Importance",
    "In-Reply-To",
    "List-Unsubscribe-Post",
    "Message-ID",
    "Precedence",
    "Priority",
    "References",
    "Sensitivity",
    "X-Priority",
]


@pytest.mark.parametrize("name", WITHOUT_ENCODED_WORDS)
def test_a_header_that_programs_read_holds_ascii_only(name: str) -> None:
    with pytest.raises(InvalidMessage, match="may contain only ASCII"):
        checked_headers({name: "é"})


@pytest.mark.parametrize("name", ["Contents", "Resents", "Archive", "Lists", "X-Message-ID", "Priorities", "Keywords"])
def test_a_header_that_only_looks_like_such_a_one_holds_any_text(name: str) -> None:
    assert checked_headers({name: "é"}) == ((name, "é"),)


@pytest.mark.parametrize(
    "name",
    [
        "From",
        "to",
        "CC",
        "bcc",
        "Reply-To",
        "Subject",
        "Return-Path",
        "Date",
        "MIME-Version",
        "Received",
        "Delivered-To",
        "Content-Type",
        "Resent-From",
    ],
)
def test_a_header_that_is_made_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidMessage, match=r"cannot be set here; \w+"):
        checked_headers({name: "x"})


def test_what_only_begins_as_an_encoded_word_is_none() -> None:
    header = {"List-Unsubscribe": "<https://shop.example/?a=?b?c?d?e>"}
    assert checked_headers(header) == tuple(header.items())
    with pytest.raises(InvalidMessage, match="encoded word"):
        checked_headers({"List-Unsubscribe": "<https://shop.example/?a=?b?c?d?=>"})


def test_a_message_id_has_at_most_250_characters() -> None:
    longest = f"<{'a' * 236}@example.com>"
    assert len(longest) == 250
    assert is_message_id(longest)
    assert not is_message_id(f"<a{longest[1:]}")


def test_a_word_that_cannot_be_folded_has_at_most_900_characters() -> None:
    header = {"List-Unsubscribe": f"<https://shop.example/{'a' * 877}>"}
    assert len(header["List-Unsubscribe"]) == 900
    assert checked_headers(header) == tuple(header.items())
    with pytest.raises(InvalidMessage, match="more than 900 characters"):
        checked_headers({"List-Unsubscribe": header["List-Unsubscribe"].replace("a>", "aa>")})
