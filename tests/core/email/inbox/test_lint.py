"""Lint findings, and the HTML inspection below them."""

import asyncio
import time
from typing import Any

import pytest

from openviper.core.email import AttachmentData
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.entries import Entry, with_step
from openviper.core.email.inbox.lint import lint_message
from openviper.core.email.lint import CLIP_BYTES, LintFinding
from openviper.core.email.lint.remote_content import elements, remote_content
from openviper.core.email.message import EmailMessageData, check_message
from openviper.core.email.message.serialiser import serialise_message

FINE = '<p>Hello <a href="https://shop.example/">shop</a> <img src="cid:logo" alt=""></p>'
COMPLETE = {"List-Unsubscribe": "<https://shop.example/out>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
LOGO = AttachmentData("logo.png", b"x", "image/png", inline=True, content_id="logo")


def entry(**message: Any) -> Entry:
    values = {"recipients": ["a@example.test"], "subject": "Hello", "text": "Hello", "sender": "s@example.test"}
    prepared = check_message(EmailMessageData(**{**values, **message}), default_sender=None)
    made = asyncio.run(serialise_message(prepared, max_message_bytes=10**8))
    return with_step(None, MessageEvent(kind="sending", message_id=made.message_id, message=made))


def lint(message: Entry, always_streams: tuple[str, ...] = ()) -> list[LintFinding]:
    return lint_message(message, always_streams, ()).findings


def titles(**message: Any) -> list[str]:
    return [finding.title for finding in lint(entry(**message))]


@pytest.mark.parametrize(
    "headers", [{"Precedence": "junk"}, {"List-Help": "<https://shop.example/help>"}, {"List-Id": "<news.example>"}]
)
def test_mail_of_a_list_is_bulk_mail(headers: dict[str, str]) -> None:
    assert titles(headers=headers) == ["Bulk mail without an unsubscribe header"]


def test_mail_that_can_be_unsubscribed_from_has_no_findings() -> None:
    """Neither has mail of a stream that nobody can opt out of."""
    headers = {"List-Unsubscribe": "<https://shop.example/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    text = "Hello\nhttps://shop.example/u"
    assert titles(stream="news", text=text, headers={**headers, "Precedence": "bulk"}) == []
    assert lint(entry(stream="account"), ("account",)) == []


ENCODED = {
    "html": '<img src="cid:logo%40shop" alt="">',
    "attachments": [AttachmentData("logo.png", b"x", "image/png", inline=True, content_id="logo@shop")],
}


@pytest.mark.parametrize(
    "message", [{}, {"html": FINE, "attachments": [LOGO]}, ENCODED, {"text": "", "attachments": [LOGO]}]
)
def test_a_good_message_has_no_findings(message: dict[str, Any]) -> None:
    assert titles(**message) == []


FINDINGS: dict[str, dict[str, Any]] = {
    "There is no subject": {"subject": " "},
    "There is no text part": {"text": " ", "html": "<p>Hello"},
    "The message is empty": {"text": " \n"},
    "1 image without alternative text": {"html": '<img src="cid:logo">', "attachments": [LOGO]},
    "2 relative links": {"html": '<a href="/a">a</a><a href="b.html">b</a><a href="#c">c</a>'},
    "1 image with a relative address": {"html": '<img src="/logo.png" alt="">'},
    "2 inline images not attached": {"html": '<img src="cid:gone" alt=""><img src="cid:off" alt="">'},
    "1 link to a script": {"html": '<a href=" java&#115;cript:alert(1)">x</a>'},
    "1 remote image": {"html": '<img src="https://cdn.example/a.png" alt="">'},
    "Remote images in styles": {"html": "<style>p{background:url('https://cdn.example/a.png')}</style>"},
    "The HTML part is 110 kB long": {"html": "<p>" + "x" * (110 * 1024)},
    "3 images with a relative address": {
        "html": '<img src="cid:logo" srcset="logo.webp 1x, cid:logo 2x" alt=""><style>p { background: url(/a.png) } '
        "@font-face { src: url(a.woff2) }</style><p style='list-style-image: url(\"b.png\"); clip-path: url(#c)'>",
        "attachments": [LOGO],
    },
    "1 image without an address": {"html": '<img data-src="https://cdn.example/a.png" alt="A">'},
    "1 inline image not attached": {"html": '<p style="background: url(cid:gone)">'},
    "Active content: <embed>, <script>": {"html": "<script>1</script><embed src=a.swf>"},
    "Event handlers: onclick": {"html": '<p onclick="x()">'},
    "Bulk mail without an unsubscribe header": {"headers": {"Precedence": "Bulk"}},
    "Readers cannot unsubscribe from the stream news": {"stream": "news"},
    "Unsubscribing takes more than one click": {
        "text": "Unsubscribe: https://shop.example/leave",
        "headers": {"List-Id": "<news.example>", "List-Unsubscribe": "<https://shop.example/out>"},
    },
}


@pytest.mark.parametrize("title", FINDINGS)
def test_a_finding_names_what_is_wrong_and_nothing_else(title: str) -> None:
    assert titles(**FINDINGS[title]) == [title]


@pytest.mark.parametrize(
    "attributes",
    [
        'type="application/ld+json"',
        'TYPE=" Application/JSON "',
        "type=importmap",
        "type='speculationrules'",
        'type="text/template" src="x.html"',
        'type="text/javascript; charset=utf-8"',
        'language="vbscript"',
    ],
)
def test_scripts_that_hold_data_are_not_active_content(attributes: str) -> None:
    assert titles(html=f'<p>Hello</p><script {attributes}>{{"@type": "Order"}}</script>') == []


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "type",
        "type=''",
        "type=module",
        'type=" TEXT/JavaScript "',
        "language=JavaScript1.2",
        'type="application/x-javascript"',
        "type=text/javascript type=application/json",
        "language='' type=''",
    ],
)
def test_scripts_that_run_are_active_content(attributes: str) -> None:
    assert titles(html=f"<p>Hello</p><script {attributes}>1</script>") == ["Active content: <script>"]


def test_many_recipients_make_bulk_mail() -> None:
    many = [f"a{number}@example.test" for number in range(21)]
    assert titles(recipients=many) == ["Bulk mail without an unsubscribe header"]
    text = "Hello\nhttps://shop.example/out"
    assert titles(recipients=many, text=text, headers=COMPLETE) == []


LINKS = [
    {"text": "Leave: https://shop.example/out"},
    {"html": '<a href="https://shop.example/out">Leave</a>', "text": "Leave"},
    {"html": '<a href="https://shop.example/p?a=1&amp;b=2">Newsletter abbestellen</a>'},
    {"html": '<a href="https://shop.example/leave">Se d&eacute;sabonner</a>'},
    {"html": '<a href="mailto:leave@shop.example?subject=Unsubscribe">Leave</a>'},
    {"html": '<a href="https://shop.example/settings">E-mail preferences</a>'},
]


@pytest.mark.parametrize("bodies", LINKS)
def test_a_message_with_the_header_has_a_visible_link_as_well(bodies: dict[str, str]) -> None:
    assert titles(headers=COMPLETE, **bodies) == []
    without = dict.fromkeys(bodies, "Hello")
    assert titles(headers=COMPLETE, **without) == ["There is no unsubscribe link in the body"]
    assert titles(**without) == []


def test_a_link_in_the_text_part_is_none_for_readers_of_the_html() -> None:
    bodies = {"html": "<p>Hello", "text": "Unsubscribe: https://shop.example/out"}
    assert titles(headers=COMPLETE, **bodies) == ["There is no unsubscribe link in the body"]


def test_the_limit_is_exact() -> None:
    assert titles(html="x" * CLIP_BYTES) == []
    assert titles(html="x" * (CLIP_BYTES + 1)) == ["The HTML part is 102 kB long"]


def test_problems_come_before_notes() -> None:
    html = '<img src="https://cdn.example/a.png"><a href="/a">a</a>'
    levels = [finding.level for finding in lint(entry(html=html))]
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == {"problem", "note"}


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://cdn.example/a.png">',
        '<img src="//cdn.example/a.png">',
        '<img src="cid:a" srcset="cid:a 1x, https://cdn.example/a.png 2x">',
        '<td background="http://cdn.example/a.png">',
        '<link rel="stylesheet" href="https://cdn.example/a.css">',
        '<svg><image xlink:href="https://cdn.example/a.png"/></svg>',
        "<style>@import 'https://cdn.example/a.css'</style>",
        '<p style="background: url(&quot;https://cdn.example/a.png&quot;)">',
        '<video poster="https://cdn.example/a.png"></video>',
    ],
)
def test_what_a_reader_would_load_from_elsewhere_is_found(html: str) -> None:
    assert remote_content(html)


@pytest.mark.parametrize(
    "html",
    [
        "",
        FINE,
        '<p style="background: url(cid:logo)">https://shop.example/</p>',
        '<img src="data:image/png;base64,AAAA">',
        '<script src="https://cdn.example/a.js"></script><iframe src="https://cdn.example/"></iframe>',
    ],
)
def test_links_and_what_is_never_loaded_are_no_remote_content(html: str) -> None:
    assert not remote_content(html)


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<a HREF='x' href=y>", [("a", {"href": "x"})]),
        ("<a href=x/y>z", [("a", {"href": "x/y"})]),
        ("<!-- <a href=x> --><b>", [("b", {})]),
        ("<script>'<a href=x>'</script><i>", [("script", {}), ("i", {})]),
        ("<a title='>' href=\"x\">", [("a", {"title": ">", "href": "x"})]),
        ("<img alt src=x>", [("img", {"alt": "", "src": "x"})]),
        ("a < b <c>", [("c", {})]),
        ("<a href='x", [("a", {"href": "'x"})]),
        ("<!-- no end <a>", []),
        ("<style> <a>", [("style", {})]),
    ],
)
def test_elements_are_found_as_browsers_find_them(html: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert list(elements(html)) == found


HOSTILE = {
    "open quotes": '<a "' * 25_000,
    "mixed quotes": "<a x=\"'<b y='\"" * 10_000,
    "open tags": "<" * 100_000,
    "nesting": "<div>" * 20_000,
    "attributes": "<a " + "b=c " * 25_000,
    "blanks": "<a" + " " * 100_000,
    "equals signs": "<a " + "=" * 100_000,
    "comments": "<!--" * 25_000,
    "scripts": "<script><title>" * 8_000,
    "urls": "url(" * 25_000,
    "entities": "<a href='" + "&amp" * 25_000 + "'>",
    "links": '<a href="/x">' * 8_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_html_is_checked_in_time(kind: str) -> None:
    message = entry(html=HOSTILE[kind])
    begun = time.thread_time()
    lint(message)
    assert time.thread_time() - begun < 10
