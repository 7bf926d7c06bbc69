"""What meets a criterion, and what a failed assertion says."""

import re
from typing import Any

import pytest

from openviper.core.email import Address, InvalidMessage, send_email
from openviper.testing import Mailbox


@pytest.fixture
async def order(mailbox: Mailbox) -> None:
    await send_email(
        ['"Alice Ä" <alice@example.com>', "bob@example.com"],
        "Your order 7",
        text="Dear Alice,\nYour order 7 has left.\nTom & Jerry",
        html="<p>Your <b>order 7</b> has left.</p><p>Tom &amp; Jerry</p>",
        bcc="archive@shop.example",
        attachments=[("invoice-7.pdf", b"%PDF-1.7", "application/pdf")],
        headers={"List-Unsubscribe": "<https://shop.example/out/7>"},
        sender='"Shop" <orders@shop.example>',
    )


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    "criteria",
    [
        {},
        {"to": "alice@example.com"},
        {"to": "alice@EXAMPLE.com"},
        {"to": '"Alice Ä" <alice@example.com>'},
        {"to": ["bob@example.com", "alice@example.com"]},
        {"to": ["bob@example.com", ("Alice Ä", "alice@example.com")]},
        {"to": Address.of("Alice Ä", "alice@example.com")},
        {"to": Address.of("", "alice@example.com")},
        {"to": [re.compile("^bob@"), ("", "alice@example.com")]},
        {"sender": ("Shop", "orders@shop.example")},
        {"sender": Address.of("", "orders@shop.example")},
        {"to": re.compile("^bob@")},
        {"to": lambda address: address.startswith("bob")},
        {"bcc": "archive@shop.example"},
        {"recipients": "archive@shop.example"},
        {"sender": "orders@shop.example"},
        {"subject": "Your order 7"},
        {"subject": re.compile(r"order \d$")},
        {"subject": lambda subject: "7" in subject},
        {"text_contains": "order 7 has left"},
        {"text_contains": ["Dear Alice", "Jerry"]},
        {"html_contains": "<b>order 7</b>"},
        {"html_contains": "Tom & Jerry"},
        {"html_contains": re.compile("order.*left")},
        {"attachment": "invoice-7.pdf"},
        {"attachment": re.compile(r"\.pdf$")},
        {"attachment": lambda attachment: attachment.content.startswith(b"%PDF")},
        {"headers": {"list-unsubscribe": "<https://shop.example/out/7>"}},
        {"headers": {"From": re.compile("Shop")}},
        {"mode": "inline"},
        {"count": 1},
    ],
)
async def test_a_message_that_meets_the_criteria_is_returned(mailbox: Mailbox, criteria: dict[str, Any]) -> None:
    assert mailbox.assert_sent(**criteria) is mailbox.last
    criteria.pop("count", None)
    with pytest.raises(AssertionError, match="found 1:\n  'Your order 7' to "):
        mailbox.assert_not_sent(**criteria)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    ("criteria", "difference"),
    [
        ({"to": "carol@example.com"}, "differs to: wanted 'carol@example.com'"),
        ({"to": ["alice@example.com"]}, "differs to: wanted ['alice@example.com']"),
        ({"to": '"Alicia" <alice@example.com>'}, "differs to: wanted"),
        ({"to": "archive@shop.example"}, "differs to: wanted 'archive@shop.example'"),
        ({"cc": re.compile("@")}, "found  []"),
        ({"sender": "other@shop.example"}, "found  '\"Shop\" <orders@shop.example>'"),
        ({"subject": "Your order"}, "found  'Your order 7'"),
        ({"subject": str.isupper}, "differs subject: wanted isupper(...)"),
        ({"text_contains": "order 8 has left."}, "the nearest line is 'Your order 7 has left.'"),
        ({"text_contains": "zzz"}, "found 'Dear Alice,\\nYour order"),
        ({"html_contains": re.compile("order 8")}, "wanted /order 8/"),
        ({"attachment": "invoice.pdf"}, "found  ['invoice-7.pdf']"),
        ({"headers": {"X-Shop": "1"}}, "differs header X-Shop: wanted '1'"),
        ({"mode": "queued"}, "found  'inline'"),
        ({"count": 2}, "2 messages expected with anything, found 1"),
    ],
)
async def test_a_failure_tells_the_difference(mailbox: Mailbox, criteria: dict[str, Any], difference: str) -> None:
    with pytest.raises(AssertionError) as failed:
        mailbox.assert_sent(**criteria)
    assert difference in str(failed.value)
    criteria.pop("count", None)
    if criteria:
        mailbox.assert_not_sent(**criteria)


async def test_the_nearest_message_comes_first_with_what_fits_and_what_does_not(mailbox: Mailbox) -> None:
    await send_email("zoe@example.org", "Welcome", text="Hello")
    await send_email("alice@example.com", "Your order 7", text="It has left.")
    await send_email("alice@example.com", "Your order 70", text="It has been packed.")
    with pytest.raises(AssertionError) as failed:
        mailbox.assert_sent(to="alice@example.com", subject="Your order 7.", text_contains="has left")
    first, *others = str(failed.value).splitlines()
    assert first.startswith("a message expected with to='alice@example.com', subject='Your order 7.', text_contains=")
    assert first.endswith("='has left', found 0; 3 messages were sent, the nearest first:")
    assert others == [
        "  'Your order 7' to alice@example.com (inline)",
        "    ok      to: 'alice@example.com'",
        "    differs subject: wanted 'Your order 7.'",
        "                     found  'Your order 7'",
        "    ok      text_contains: 'has left'",
        "  'Your order 70' to alice@example.com (inline)",
        "    ok      to: 'alice@example.com'",
        "    differs subject: wanted 'Your order 7.'",
        "                     found  'Your order 70'",
        "    differs text_contains: wanted 'has left'",
        "            found 'It has been packed.'",
        "  'Welcome' to zoe@example.org (inline)",
        "    differs to: wanted 'alice@example.com'",
        "                found  ['zoe@example.org']",
        "    differs subject: wanted 'Your order 7.'",
        "                     found  'Welcome'",
        "    differs text_contains: wanted 'has left'",
        "            found 'Hello'",
    ]


async def test_of_messages_that_miss_as_much_the_most_alike_is_the_nearest(mailbox: Mailbox) -> None:
    for subject in ("Welcome", "Your order 70 is on its way", "Order"):
        await send_email("alice@example.com", subject, text="Hello")
    with pytest.raises(AssertionError) as failed:
        mailbox.assert_sent(subject="Your order 7 is on its way")
    assert str(failed.value).splitlines()[1] == "  'Your order 70 is on its way' to alice@example.com (inline)"


async def test_nothing_sent_says_what_failed(mailbox: Mailbox) -> None:
    with mailbox.fail_with("550 unknown", at="rcpt"):
        await send_email("alice@example.com", "Hi", text="Hello", fail_silently=True)
    with pytest.raises(AssertionError, match=r"nothing was sent\nnot delivered: 'Hi' to alice.*550 unknown"):
        mailbox.assert_sent()
    for look in (lambda: mailbox.last, mailbox.links):
        with pytest.raises(AssertionError, match="nothing was sent"):
            look()


async def test_a_wrong_criterion_is_no_match_but_an_error(mailbox: Mailbox) -> None:
    await send_email("alice@example.com", "Hi", text="Hello")
    with pytest.raises(TypeError, match="no criterion 'subjekt'; did you mean 'subject'"):
        mailbox.assert_sent(subjekt="Hi")  # type: ignore[call-arg]
    mailbox.clear()
    with pytest.raises(TypeError, match="no criterion 'subjekt'"):
        mailbox.assert_not_sent(subjekt="Hi")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="assert_not_sent"):
        mailbox.assert_sent(count=0)


async def test_links_are_those_of_the_html_then_of_the_text(mailbox: Mailbox) -> None:
    await send_email(
        "alice@example.com",
        "Hi",
        html='<a href="https://shop.example/confirm?a=1&amp;b=2">in</a> <a href="/relative">x</a>'
        '<a href="mailto:a@b.example">m</a><a href="#top">t</a><a href=" shop://open/7 ">app</a>'
        '<a href="https://shop.example/confirm?a=1&amp;b=2">again</a>',
        text="Go to <https://shop.example/text>, (https://shop.example/wiki_(x)), or https://shop.example/end?a=b.\n"
        "https://shop.example/confirm?a=1&b=2",
    )
    assert mailbox.links() == [
        "https://shop.example/confirm?a=1&b=2",
        "shop://open/7",
        "https://shop.example/text",
        "https://shop.example/wiki_(x)",
        "https://shop.example/end?a=b",
    ]
    assert mailbox.links(0) == mailbox.last.links()


async def test_a_snapshot_is_the_same_for_the_same_message(mailbox: Mailbox) -> None:
    for _ in range(2):
        await send_email(
            "alice@example.com",
            "Grüße",
            html='<p>Schön: <img src="cid:logo"></p>',
            bcc="archive@shop.example",
            attachments=[
                ("a.txt", b"plain", "text/plain"),
                {"filename": "l.png", "content": b"PNG", "mimetype": "image/png", "inline": True, "content_id": "logo"},
            ],
        )
    first, second = (message.snapshot() for message in mailbox)
    assert first == second
    assert first == (
        "From: orders@shop.example\n"
        "To: alice@example.com\n"
        "Subject: Grüße\n"
        "Date: <date>\n"
        "Message-ID: <message-id>\n"
        "(Bcc: archive@shop.example)\n"
        "--- multipart/mixed\n"
        "  --- multipart/alternative\n"
        "    --- text/plain\n"
        "Schön:\n"
        "    --- multipart/related\n"
        "      --- text/html\n"
        '<p>Schön: <img src="cid:logo"></p>\n'
        "      --- image/png inline 'l.png' Content-ID <logo> 3 bytes sha256 796120837694d3f3\n"
        "  --- text/plain attachment 'a.txt' 5 bytes sha256 a116c9ed46d62077\n"
    )


@pytest.mark.usefixtures("order")
async def test_a_bare_pair_is_no_criterion_for_several_addresses(mailbox: Mailbox) -> None:
    with pytest.raises(InvalidMessage, match=r"^to: .* is a bare pair; write \[\(name, address\)\]$"):
        mailbox.assert_sent(to=("Alice Ä", "alice@example.com"))
    with pytest.raises(AssertionError, match="found 0"):
        mailbox.assert_sent(to=[("Bob", "alice@example.com"), "bob@example.com"])
    with pytest.raises(AssertionError, match="found 0"):
        mailbox.assert_sent(sender=("Store", "orders@shop.example"))
