"""The line of the list that shows how a message begins."""

import time

import pytest

from openviper.core.email.inbox.snippets import snippet
from openviper.core.email.message import EmailMessageData, check_message


def shown_for(html: str | None) -> str:
    data = EmailMessageData("a@example.test", "Hello", "The\n text part", html, sender="shop@example.test")
    return snippet(check_message(data, default_sender=None))


HEAD = "<!doctype html><html><head><title>Shop</title><style>p { color: red }</style></head><body>"


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        (f"{HEAD}<p>Hello <b>A</b>na,</p><p>welcome &amp; enjoy</p>", "Hello Ana, welcome & enjoy"),
        ('<a href="https://shop.example/orders/7">See your order</a>', "See your order"),
        ('<div style="display:none">New in May &zwnj;&nbsp;&zwnj;&nbsp;</div><h1>Letter</h1>', "New in May Letter"),
        ("<table><tr><td>Total</td><td>7.00</td></tr></table>", "Total 7.00"),
        ("<script>alert(1)</script>x<!-- comment --> y", "x y"),
        ("<h1># Release</h1>", "# Release"),
        ("no markup", "no markup"),
        ('<img src="cid:a" alt="">', "The text part"),
        ("", "The text part"),
        (None, "The text part"),
    ],
)
def test_it_shows_the_text_that_readers_see(html: str | None, shown: str) -> None:
    assert shown_for(html) == shown


@pytest.mark.parametrize(
    "html", ["<p>" * 100_000, "<style>" * 50_000, "x" * 1_000_000, "&nbsp;" * 200_000, "<!--" * 50_000]
)
def test_hostile_html_is_read_in_time(html: str) -> None:
    begun = time.thread_time()
    assert len(shown_for(html)) <= 160
    assert time.thread_time() - begun < 5
