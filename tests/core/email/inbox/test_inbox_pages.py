"""What the pages show and do, without a browser."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.inbox import SAME_ORIGIN, Inboxes, keys_of
from support.patience import PATIENCE
from support.prepared import make_outgoing
from support.smtpd import SmtpServer

from openviper.core.email import AttachmentData, send_email
from openviper.core.email.backends import DeliveryReport, MemoryBackend
from openviper.core.email.delivery.pause.flag import change_state
from openviper.core.email.delivery.pause.folder_flag import FolderPauseStore
from openviper.core.email.events import publish
from openviper.core.email.inbox.store import MAX_MESSAGES
from openviper.core.email.message import OutgoingMessage

PIXEL = AttachmentData("dot.png", b"\x89PNG\r\n\x1a\n...", "image/png", inline=True, content_id="dot@shop")


def states(page: str) -> list[str]:
    """The steps of the timeline."""
    _, _, timeline = page.partition('<ol class="timeline">')
    return re.findall(r'<span class="state (\w+)">', timeline)


async def until(client: httpx.AsyncClient, path: str, state: str) -> str:
    """The message's page once it is in ``state``."""
    deadline = time.monotonic() + PATIENCE
    while states(page := (await client.get(path)).text)[-1] != state:
        assert time.monotonic() < deadline, f"it did not become {state}: {states(page)}"
        await asyncio.sleep(0.02)
    return page


async def test_the_newest_message_is_on_top(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        for subject in ("first", "second", "third"):
            await send_email("a@example.test", subject, text="")
        page = (await client.get("/_mail/")).text
    assert page.index("third") < page.index("second") < page.index("first")


async def test_a_message_is_unread_until_it_is_opened(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        assert '<li class="unread">' in (await client.get("/_mail/")).text
        await client.get(path)
        assert '<li class="read">' in (await client.get("/_mail/")).text


@pytest.mark.parametrize(
    ("words", "found"),
    [("INVOICE", True), ("bob@example", True), ("thank order", True), ("hidden@", True), ("thank absent", False)],
)
async def test_search_finds_every_word_in_subject_addresses_and_text(inboxes: Inboxes, words: str, found: bool) -> None:
    async with inboxes.open() as client:
        await send_email("bob@example.test", "Your invoice", text="Thank you for the order", bcc="hidden@example.test")
        await send_email("eve@example.test", "Other", text="Something else")
        page = (await client.get("/_mail/", params={"q": words})).text
    assert ("Your invoice" in page) is found
    assert "Something else" not in page


async def test_only_so_many_messages_are_kept(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        for number in range(MAX_MESSAGES + 3):
            await send_email("a@example.test", f"number-{number}.", text="")
        pages = [(await client.get(f"/_mail/?page={number}")).text for number in range(1, 6)]
        listed = (await client.get("/_mail/api/messages")).json()["messages"]
    assert [len(keys_of(page)) for page in pages] == [100] * 5
    assert [key for page in pages for key in keys_of(page)] == [one["key"] for one in listed]
    assert len(listed) == MAX_MESSAGES
    assert listed[-1]["subject"] == "number-3."


async def test_bcc_is_shown_as_such(inboxes: Inboxes) -> None:
    async with inboxes.with_message(bcc="hidden@example.test") as (client, path):
        page = (await client.get(path)).text
        source = (await client.get(f"{path}/source")).text
    assert re.search(r"<dt>Bcc</dt><dd>hidden@example\.test", page)
    assert "hidden@example.test" not in source


async def test_addresses_are_spelled_as_in_headers_everywhere(inboxes: Inboxes) -> None:
    people = {"recipients": ["Ana Costa <ana@example.test>", "b@example.test"], "reply_to": ("Help, Desk", "h@x.test")}
    async with inboxes.with_message(**{**people, "reply_to": [people["reply_to"]]}) as (client, path):
        page = (await client.get(path)).text
        headers = (await client.get(f"{path}?view=headers")).text
        listed = (await client.get("/_mail/")).text
    for shown in (page, headers):
        assert "<dd>Shop &lt;shop@example.test&gt;</dd>" in shown
        assert "<dd>Ana Costa &lt;ana@example.test&gt;, b@example.test</dd>" in shown
        assert "<dd>&#34;Help, Desk&#34; &lt;h@x.test&gt;</dd>" in shown
    assert '<span class="whom" dir="auto" title="ana@example.test, b@example.test">Ana Costa</span>' in listed


@pytest.fixture
def east() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XXX-05:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("east")
async def test_the_message_id_and_the_time_zone_are_named(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        page = (await client.get(path)).text
        listed = (await client.get("/_mail/")).text
    assert re.search(r"<dt>Message-ID</dt><dd>&lt;[0-9a-f]{32}@example.test&gt;</dd>", page)
    assert "Times in UTC+05:30" in page
    assert "times in UTC+05:30" in listed


async def test_the_timeline_shows_the_servers_answer(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        page = (await client.get(path)).text
    assert states(page) == ["sending", "delivered"]
    assert "kept in memory" in page
    assert "Inline: sent before the call returned" in page


async def test_headers_are_decoded_and_the_source_is_not(inboxes: Inboxes) -> None:
    async with inboxes.with_message(subject="Grüße aus Köln") as (client, path):
        headers = (await client.get(f"{path}?view=headers")).text
        source = (await client.get(f"{path}?view=source")).text
    assert "<dt>Subject</dt><dd>Grüße aus Köln</dd>" in headers
    assert "Subject: =?utf-8?" in source


async def test_inline_images_are_served_to_the_frame(inboxes: Inboxes) -> None:
    html = '<img src="cid:dot@shop" alt=""><img src="CID:dot%40shop" alt="">'
    async with inboxes.with_message(html=html, attachments=[PIXEL]) as (client, path):
        framed = await client.get(f"{path}/html")
        addresses = re.findall(r'src="([^"]+)"', framed.text)
        images = [await client.get(address) for address in addresses]
        absent = await client.get(f"{path}/inline/other")
    assert addresses == [f"{path}/inline/dot@shop", f"{path}/inline/dot%40shop"]
    assert f"http://127.0.0.1:8000{path}/inline/" in framed.headers["content-security-policy"]
    for image in images:
        assert (image.content, image.headers["content-type"]) == (PIXEL.content, "image/png")
        assert "sandbox" in image.headers["content-security-policy"]
    assert absent.status_code == 404


async def test_remote_content_is_blocked_until_it_is_allowed(inboxes: Inboxes) -> None:
    html = '<link rel="preconnect" href="https://track.example"><img src="https://cdn.example/x.png" alt="">'
    async with inboxes.with_message(html=html) as (client, path):
        blocked = await client.get(f"{path}/html")
        allowed = await client.get(f"{path}/html?remote=1")
        page = (await client.get(path)).text
    assert "https:" not in blocked.headers["content-security-policy"]
    assert "<link" not in blocked.text
    assert "img-src data: http://127.0.0.1:8000" in allowed.headers["content-security-policy"]
    assert " https:" in allowed.headers["content-security-policy"]
    assert "Remote content is blocked" in page


async def test_a_message_that_asks_for_nothing_remote_has_nothing_to_allow(inboxes: Inboxes) -> None:
    html = '<a href="https://shop.example/">Shop</a><img src="cid:dot@shop" alt="">'
    async with inboxes.with_message(html=html, attachments=[PIXEL]) as (client, path):
        page = (await client.get(path)).text
    assert "<iframe" in page
    assert "Remote content" not in page


async def test_send_again_makes_a_new_message(inboxes: Inboxes) -> None:
    async with inboxes.with_message(bcc="b@example.test", attachments=[PIXEL]) as (client, path):
        answer = await client.post(f"{path}/again", headers=SAME_ORIGIN)
        copy = answer.headers["location"]
        page = await until(client, copy, "delivered")
        assert copy != path
        assert states(page) == ["deferred", "sending", "delivered"]
        assert "sent again from the inbox page" in page
        assert "b@example.test" in page
        sources = [(await client.get(f"{address}/source")).text for address in (path, copy)]
    ids = [re.search(r"Message-ID: (\S+)", source, re.IGNORECASE) for source in sources]
    assert len({match[1] for match in ids if match}) == 2


async def order(request: Request) -> Response:
    await send_email("a@example.test", "Order", text="Thank you")
    return PlainTextResponse("ok")


async def test_retry_now_tries_a_message_that_waits(inboxes: Inboxes) -> None:
    """After three attempts, whose pause is long enough for the button on a slow machine, too."""
    with SmtpServer() as server:
        for attempt in (1, 2, 3):
            server.fault("RCPT", 451, nth=attempt)
        async with inboxes.open(
            Starlette(routes=[Route("/order", order)]), **server.settings(backend="SMTPBackend")
        ) as client:
            await client.get("/order")
            (key,) = keys_of((await client.get("/_mail/")).text)
            await server.seen("RCPT", 3)
            page = await until(client, f"/_mail/{key}", "retrying")
            assert "Retry now" in page
            assert "in 25 s" in page
            answer = await client.post(f"/_mail/{key}/retry", headers=SAME_ORIGIN)
            assert answer.headers["location"] == f"/_mail/{key}"
            page = await until(client, f"/_mail/{key}", "delivered")
            assert states(page) == ["deferred", *["sending", "retrying"] * 3, "sending", "delivered"]
            assert "Retry now" not in page


async def test_a_failed_message_can_be_tried_again(inboxes: Inboxes) -> None:
    with SmtpServer() as server:
        server.fault("RCPT", 550, nth=1)
        async with inboxes.open(**server.settings(backend="SMTPBackend")) as client:
            assert not await send_email("a@example.test", "Failed", text="", fail_silently=True)
            (key,) = keys_of((await client.get("/_mail/")).text)
            assert states((await client.get(f"/_mail/{key}")).text) == ["sending", "failed"]
            await client.post(f"/_mail/{key}/retry", headers=SAME_ORIGIN)
            page = await until(client, f"/_mail/{key}", "delivered")
        (message,) = server.messages
    assert "retried from the inbox page" in page
    assert message.recipients == ["a@example.test"]


@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
async def test_those_who_were_refused_while_others_got_it_are_seen_and_tried_again(
    inboxes: Inboxes, tmp_path: Path, kept: str
) -> None:
    folder: dict[str, Any] = {} if kept == "in memory" else {"inbox_dir": str(tmp_path)}
    with SmtpServer() as server:
        server.refuse("gone@example.test", 550)
        async with inboxes.open(**server.settings(backend="SMTPBackend"), **folder) as client:
            await send_email(["a@example.test", "gone@example.test"], "Both", text="")
            listed = (await client.get("/_mail/?q=partly")).text
            (key,) = keys_of(listed)
            assert "partly delivered" in listed
            message = (await client.get(f"/_mail/api/messages/{key}")).json()
            assert (message["state"], message["refused"]) == ("delivered", ["gone@example.test"])
            assert "refused: gone@example.test (550" in message["timeline"][-1]["detail"]
            server.behave()
            await client.post(f"/_mail/{key}/retry", headers=SAME_ORIGIN)
            await server.arrive(2)
            page = await until(client, f"/_mail/{key}", "delivered")
            assert "Retry now" not in page
            assert "partly" not in page
    assert [message.recipients for message in server.messages] == [["a@example.test"], ["gone@example.test"]]


async def test_retry_of_what_waits_nowhere_says_so(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        answer = await client.post(f"{path}/retry", headers=SAME_ORIGIN)
        assert "this message is no longer waiting" in (await client.get(answer.headers["location"])).text


async def test_newer_and_older_lead_through_the_messages(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        for subject in ("first", "second", "third"):
            await send_email("a@example.test", subject, text="")
        third, second, first = keys_of((await client.get("/_mail/")).text)
        page = (await client.get(f"/_mail/{second}")).text
        assert f'href="/_mail/{third}" rel="prev"' in page
        assert f'href="/_mail/{first}" rel="next"' in page
        assert 'rel="prev"' not in (await client.get(f"/_mail/{third}")).text
        assert 'rel="next"' not in (await client.get(f"/_mail/{first}")).text


async def test_the_application_itself_goes_on_as_before(inboxes: Inboxes) -> None:
    """The page adds nothing to answers that are not its own."""
    async with inboxes.open() as client:
        assert (await client.get("/other")).status_code == 404


CALENDAR = "BEGIN:VCALENDAR\r\nMETHOD:CANCEL\r\nBEGIN:VEVENT\r\nUID:7\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"


@pytest.mark.parametrize("in_folder", [False, True])
async def test_a_calendar_is_listed_and_can_be_stored(inboxes: Inboxes, tmp_path: Path, in_folder: bool) -> None:
    async with inboxes.open(inbox_dir=tmp_path if in_folder else None) as client:
        await send_email("a@example.test", "Off", "Cancelled", calendar=CALENDAR, calendar_attachment=True)
        await send_email("a@example.test", "Without", "No calendar")
        other, key = keys_of((await client.get("/_mail/")).text)
        page = await client.get(f"/_mail/{key}")
        stored = await client.get(f"/_mail/{key}/calendar")
        shown = (await client.get(f"/_mail/api/messages/{key}")).json()
        assert (await client.get(f"/_mail/{other}/calendar")).status_code == 404
        assert "cancel.ics" not in (await client.get(f"/_mail/{other}")).text
    assert re.search(
        r'/calendar" download>cancel\.ics</a>\s*<small.*text/calendar, CANCEL, .*a body and attached', page.text
    )
    assert stored.text == shown["calendar"] == CALENDAR
    assert "cancel.ics" in stored.headers["content-disposition"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "MemoryBackend"}, "They go through MemoryBackend, so nothing leaves this machine."),
        ({"backend": "ConsoleBackend"}, "They go through ConsoleBackend, so nothing leaves this machine."),
        (
            {"backend": "SMTPBackend", "host": "localhost", "port": 2525},
            "They go through SMTPBackend at localhost:2525, to their recipients.",
        ),
        (
            {"backend": "SMTPBackend", "host": "localhost", "port": 2525, "redirect_to": ["team@example.com"]},
            "They go through SMTPBackend at localhost:2525, redirected to team@example.com.",
        ),
    ],
)
async def test_an_empty_page_names_the_backend_and_the_first_call(
    inboxes: Inboxes, settings: dict[str, Any], words: str
) -> None:
    async with inboxes.open(**settings) as client:
        page = (await client.get("/_mail/")).text
        assert words in page
        assert "await send_email(" in page
        assert "await send_email(" not in (await client.get("/_mail/?q=absent")).text


async def test_every_page_says_what_is_paused_and_until_when(inboxes: Inboxes, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backend": "FileBackend", "file_dir": tmp_path, "state_dir": tmp_path / "state"}
    store = FolderPauseStore(tmp_path / "state")
    await asyncio.to_thread(store.open)
    await asyncio.to_thread(change_state, store, None, seconds=None, stop=True)
    async with inboxes.open(**settings) as client:
        for page in ("", "failed", "templates"):
            text = (await client.get(f"/_mail/{page}")).text
            assert "Sending is paused: all mail, until `viperctl email resume`." in text
        await asyncio.to_thread(change_state, store, None, seconds=None, stop=False)
        async with asyncio.timeout(PATIENCE):
            while "Sending is paused" in (await client.get("/_mail/")).text:
                await asyncio.sleep(0.05)


class Forwarding(MemoryBackend):
    """Sends what its base class keeps."""

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        return DeliveryReport(message.envelope.recipients)


async def test_a_backend_that_may_send_is_not_said_to_keep_mail(inboxes: Inboxes) -> None:
    async with inboxes.open(backend=f"{__name__}.Forwarding") as client:
        assert "They go through Forwarding, to their recipients." in (await client.get("/_mail/")).text


@pytest.mark.parametrize("shared", [False, True])
async def test_without_a_shared_folder_the_page_says_whose_mail_it_shows(
    inboxes: Inboxes, tmp_path: Path, shared: bool
) -> None:
    """Of a queued message only a shared folder shows what the worker does."""
    async with inboxes.open(inbox_dir=tmp_path if shared else None) as client:
        assert ("Only mail of this process is shown." in (await client.get("/_mail/")).text) is not shared
        publish("queued", await make_outgoing("a@example.test"))
        deadline = time.monotonic() + PATIENCE
        while not (keys := keys_of((await client.get("/_mail/")).text)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        page = (await client.get(f"/_mail/{keys[0]}")).text
    assert "Queued: sent by a worker" in page
    assert ("What the worker does with it is shown if" in page) is not shared


async def test_a_message_that_ended_here_names_no_worker(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        assert "What the worker does" not in (await client.get(path)).text


async def test_a_redirected_message_says_for_whom_it_was(inboxes: Inboxes) -> None:
    async with inboxes.open(redirect_to=["team@staging.example"]) as client:
        await send_email("ann@example.test", "Hello", text="Hi")
        (key,) = keys_of((await client.get("/_mail/")).text)
        page = (await client.get(f"/_mail/{key}")).text
        timeline = (await client.get(f"/_mail/api/messages/{key}")).json()["timeline"]
    assert "to team@staging.example, was for ann@example.test" in page
    assert [step["kind"] for step in timeline] == ["sending", "redirected", "delivered"]


async def test_links_in_the_text_part_can_be_followed(inboxes: Inboxes) -> None:
    text = "Confirm (https://shop.example/c?a=1&b='<i>), or see http://shop.example/x). Not javascript:alert(1) <b>"
    async with inboxes.with_message(text=text) as (client, path):
        page = (await client.get(path)).text
    _, _, part = page.partition('aria-label="Text part">')
    assert part.partition("</pre>")[0] == (
        'Confirm (<a href="https://shop.example/c?a=1&amp;b=" target="_blank" rel="noopener">'
        "https://shop.example/c?a=1&amp;b=</a>&#39;&lt;i&gt;), or see "
        '<a href="http://shop.example/x" target="_blank" rel="noopener">http://shop.example/x</a>'
        "). Not javascript:alert(1) &lt;b&gt;"
    )


async def test_a_subject_cannot_reorder_the_line(inboxes: Inboxes) -> None:
    async with inboxes.with_message(subject="photo \u202egnp.exe") as (client, path):
        pages = [(await client.get(address)).text for address in ("/_mail/", path, f"{path}/release")]
    for page in pages:
        assert "photo \\u202egnp.exe" in page
        assert "\u202e" not in page


async def test_of_many_recipients_the_first_are_shown(inboxes: Inboxes) -> None:
    async with inboxes.with_message(recipients=[f"reader{number}@example.test" for number in range(9)]) as (
        client,
        path,
    ):
        page = (await client.get(path)).text
    first, _, more = page.partition("<summary>and 3 more</summary>")
    assert "reader5@example.test<details>" in first
    assert more.startswith("reader6@example.test, reader7@example.test, reader8@example.test</details>")


async def test_the_reason_of_a_failure_is_beside_the_subject(inboxes: Inboxes) -> None:
    with SmtpServer() as smtp:
        smtp.refuse("gone@example.test", 550)
        settings = smtp.settings(backend="SMTPBackend")
        async with inboxes.open(**settings) as client:
            for recipient in ("a@example.test", "gone@example.test"):
                await send_email(recipient, recipient, text="", fail_silently=True)
            failed, delivered = keys_of((await client.get("/_mail/")).text)
            pages = [(await client.get(f"/_mail/{key}")).text for key in (failed, delivered)]
    reasons = [re.findall('class="notice why bad">([^<]*)<', page) for page in pages]
    assert len(reasons[0]) == 1
    assert "550" in reasons[0][0]
    assert reasons[1] == []
