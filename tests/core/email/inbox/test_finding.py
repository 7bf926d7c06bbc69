"""Find messages on the page: operators, filters, pages of the list, links that keep the search, several selected."""

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.inbox import SAME_ORIGIN, Inboxes, keys_of
from support.prepared import make_outgoing

from openviper.conf import override
from openviper.core.email import AttachmentData, send_email
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.query import parse_query
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.store import MemoryStore

LOGO = AttachmentData("logo.png", b"\x89PNG", "image/png", inline=True, content_id="logo")


@asynccontextmanager
async def three_messages(inboxes: Inboxes) -> AsyncIterator[httpx.AsyncClient]:
    async with inboxes.open(mailers={"bulk": {}}) as client:
        await send_email(
            "Ana Costa <ana@example.test>",
            "Your invoice",
            text="Thank you\r\n for the  order",
            cc="Carl <carl@example.test>",
            bcc="hidden@example.test",
            reply_to="help@shop.test",
            headers={"X-Order": "A-1042"},
            attachments=[AttachmentData("Rechnung März.pdf", b"%PDF", "application/pdf")],
        )
        await send_email(
            "bob@example.test", "June", html='<img src="cid:logo" alt="">News', attachments=[LOGO], mailer="bulk"
        )
        await send_email("ana@other.test", "Reset", text="Your code is 123456", sender="Zoe <login@shop.test>")
        yield client


async def found(client: httpx.AsyncClient, text: str) -> list[str]:
    """The subjects that the API finds; the page must find the same."""
    messages = (await client.get("/_mail/api/messages", params={"q": text})).json()["messages"]
    page = (await client.get("/_mail/", params={"q": text})).text
    assert keys_of(page) == [message["key"] for message in messages]
    return [message["subject"] for message in messages]


async def test_each_operator_finds_its_part_of_a_message(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        expected = {
            "from:zoe": ["Reset"],
            "from:login@shop": ["Reset"],
            "to:ana": ["Reset", "Your invoice"],
            'to:"Ana Costa <ana@"': ["Your invoice"],
            "to:hidden": ["Your invoice"],
            "cc:carl": ["Your invoice"],
            "cc:ana": [],
            "bcc:hidden@": ["Your invoice"],
            "subject:INVOICE": ["Your invoice"],
            "has:attachment": ["Your invoice"],
            "-has:attachment": ["Reset", "June"],
            "is:unread": ["Reset", "June", "Your invoice"],
            "is:read": [],
            "state:delivered": ["Reset", "June", "Your invoice"],
            "state:partly-delivered": [],
            "mailer:bulk": ["June"],
            "-mailer:bulk": ["Reset", "Your invoice"],
            "mailer:bul": [],
            "after:2000-01-01": ["Reset", "June", "Your invoice"],
            "before:2000-01-01": [],
            '"thank you for the order"': ["Your invoice"],
            '"you thank"': [],
            "order thank": ["Your invoice"],
            "order -thank": [],
            "märz.pdf": ["Your invoice"],
            "logo.png": ["June"],
            "a-1042": ["Your invoice"],
            '"x-order: a-1042"': ["Your invoice"],
            "help@shop": ["Your invoice"],
            "delivered": ["Reset", "June", "Your invoice"],
            "-delivered": [],
            "your -code -invoice": [],
        }
        assert {text: await found(client, text) for text in expected} == expected


async def test_a_template_finds_the_mail_that_was_made_from_it(inboxes: Inboxes, tmp_path: Path) -> None:
    (tmp_path / "emails").mkdir()
    (tmp_path / "emails/order_shipped.txt").write_text("On its way")
    with override(DEBUG=True, TEMPLATES_DIR=str(tmp_path)):
        async with inboxes.open() as client:
            await send_email("a@example.test", "Your order", template="emails/order_shipped.txt")
            await send_email("a@example.test", "Other", text="order")
            assert await found(client, "template:SHIPPED") == ["Your order"]
            assert await found(client, "-template:shipped") == ["Other"]
            assert await found(client, "order_shipped") == ["Your order"]


async def test_dates_and_cursors_bound_the_arrival(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        messages = (await client.get("/_mail/api/messages")).json()["messages"]
        second = messages[1]["cursor"]
        assert await found(client, f"after:{second}") == ["Reset"]
        assert await found(client, f"before:{second}") == ["Your invoice"]
        assert await found(client, f"-after:{second}") == ["June", "Your invoice"]


async def test_partly_delivered_is_a_state_of_its_own() -> None:
    message = await make_outgoing("a@example.test", "b@example.test")
    store = MemoryStore()
    for kind, refused in (("sending", ()), ("delivered", ("b@example.test",))):
        event: Any = {"kind": kind, "message_id": message.message_id, "message": message, "refused": refused}
        store.record(MessageEvent(**event))
    entries = await store.newest_first()
    states = {
        text: len(Searcher().search(entries, parse_query(text).terms))
        for text in (
            "state:partly-delivered",
            "state:delivered",
            "-state:partly-delivered",
            '"partly delivered"',
            "partl",
        )
    }
    assert list(states.values()) == [1, 1, 0, 1, 1]


async def test_a_mistake_in_the_search_gives_a_hint_and_results(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        page = html.unescape((await client.get("/_mail/?q=is:uread+form:+june")).text)
        unknown = html.unescape((await client.get("/_mail/?q=form:ana")).text)
    assert "is: there is no 'uread' (known: unread, read); did you mean 'unread'?" in page
    assert "form: is not an operator, so it was searched as text; did you mean 'from'?" in unknown
    assert "Nothing matches “form:ana”" in unknown


def links(page: str, name: str) -> dict[str, tuple[str, bool]]:
    """The text of each link of a list, with its address and True if it is active."""
    _, _, part = page.partition(f'aria-label="{name}"')
    rows = re.findall(r'<a href="([^"]+)"( aria-current="true")?>(.*?)</a>', part.partition("</ul>")[0])
    labels = [re.sub(r"<span.*?</span>", "", label).strip() for _, _, label in rows]
    return {
        html.unescape(label): (html.unescape(address), bool(active))
        for label, (address, active, _) in zip(labels, rows, strict=True)
    }


async def test_a_search_has_at_most_fifty_parts(inboxes: Inboxes) -> None:
    words = [f"-word{number}" for number in range(51)]
    async with three_messages(inboxes) as client:
        assert await found(client, " ".join(words[:50])) == ["Reset", "June", "Your invoice"]
        page = (await client.get("/_mail/", params={"q": " ".join(words)})).text
        answers = [
            await client.delete("/_mail/api/messages", params=parameters)
            for parameters in ({"q": " ".join(words)}, {"subject": words}, {"q": " ".join(words[:50]), "to": "ana"})
        ]
        assert len(keys_of((await client.get("/_mail/")).text)) == 3
    assert "only the first 50 parts are searched" in page
    assert len(re.findall(r">-word\d+", page)) == 50
    assert [answer.status_code for answer in answers] == [400, 400, 400]


async def test_chips_add_conditions_and_remove_them(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        page = (await client.get("/_mail/", params={"q": 'to:"Ana Costa" is:unread', "mailer": "default"})).text
        assert links(page, "Filters") == {
            "Unread": ("/_mail/?mailer=default&q=to%3A%22Ana+Costa%22", True),
            "With attachment": (
                "/_mail/?mailer=default&q=to%3A%22Ana+Costa%22+is%3Aunread+has%3Aattachment",
                False,
            ),
            "Failed": ("/_mail/?mailer=default&q=to%3A%22Ana+Costa%22+is%3Aunread+state%3Afailed", False),
            'to:"Ana Costa"': ("/_mail/?mailer=default&q=is%3Aunread", True),
        }
        (key,) = keys_of(page)
        attached = await client.get(links(page, "Filters")["With attachment"][0])
        assert keys_of(attached.text) == [key]


async def test_the_pages_of_a_message_keep_the_search(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        first, second = keys_of((await client.get("/_mail/?q=to:ana")).text)
        page = html.unescape((await client.get(f"/_mail/{first}?q=to:ana")).text)
        assert f'href="/_mail/{second}?q=to%3Aana" rel="next"' in page
        assert 'rel="prev"' not in page
        assert 'href="/_mail/?q=to%3Aana"><span>← Search results' in page
        assert "q=to%3Aana&view=headers" in page
        other = html.unescape((await client.get(f"/_mail/{second}?q=to:ana&view=headers")).text)
        assert f'href="/_mail/{first}?q=to%3Aana" rel="prev"' in other
        assert '<input type="hidden" name="q" value="to:ana">' in other
        deleted = await client.post(f"/_mail/{second}/delete", data={"q": "to:ana"}, headers=SAME_ORIGIN)
        assert deleted.headers["location"] == "/_mail/?q=to%3Aana"


async def test_a_copy_and_an_attachment_lead_back_to_the_search(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        await send_email("ana@example.test", "Hello", "Hi", attachments=[("order.csv", b"7,99.00", "text/csv")])
        (key,) = keys_of((await client.get("/_mail/")).text)
        page = (await client.get(f"/_mail/{key}?q=to:ana")).text
        for below in ("release", "attachments/0/text"):
            (address,) = re.findall(f'href="(/_mail/{key}/{below}[^"]*)"', page)
            opened = (await client.get(address)).text
            assert f'href="/_mail/{key}?q=to%3Aana">← The message' in opened
        (action,) = re.findall('action="([^"]*/release[^"]*)"', (await client.get(f"/_mail/{key}/release?q=a")).text)
        wrong = await client.post(action, data={"to": "nobody"}, headers=SAME_ORIGIN)
        assert f'href="/_mail/{key}?q=a">← The message' in wrong.text
        copied = await client.post(action, data={"to": "me@example.test"}, headers=SAME_ORIGIN)
        assert copied.headers["location"].endswith("?q=a")


async def test_sending_again_and_retrying_keep_the_search(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        page = (await client.get(f"{path}?q=a")).text
        (form,) = re.findall(f'action="{path}/again".*?</form>', page)
        assert 'name="q" value="a"' in form
        again = await client.post(f"{path}/again", data={"q": "a"}, headers=SAME_ORIGIN)
        assert again.headers["location"].endswith("?q=a")
        retried = await client.post(f"{path}/retry", data={"q": "a"}, headers=SAME_ORIGIN)
        assert retried.headers["location"] == f"{path}?q=a&retry-failed"
        assert "this message is no longer waiting" in (await client.get(retried.headers["location"])).text


async def test_a_message_that_left_its_search_by_being_read_has_neighbours_still(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        keys = keys_of((await client.get("/_mail/")).text)
        page = html.unescape((await client.get(f"/_mail/{keys[1]}?q=is:unread")).text)
    assert f'href="/_mail/{keys[0]}?q=is%3Aunread" rel="prev"' in page
    assert f'href="/_mail/{keys[2]}?q=is%3Aunread" rel="next"' in page


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "folder"])
async def test_selected_messages_are_marked_and_deleted(inboxes: Inboxes, shared: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"inbox_dir": str(tmp_path / "inbox")} if shared else {}
    async with inboxes.open(**settings) as client:

        async def change(action: str, keys: list[str]) -> list[tuple[str, bool]]:
            data = {"action": action, "key": keys, "q": "text", "page": "2"}
            answer = await client.post("/_mail/selected", data=data, headers=SAME_ORIGIN)
            assert (answer.status_code, answer.headers["location"]) == (303, "/_mail/?q=text&page=2")
            listed = (await client.get("/_mail/api/messages")).json()["messages"]
            return [(one["subject"], one["read"]) for one in listed]

        for subject in ("one", "two", "three"):
            await send_email("a@example.test", subject, text="text")
        three, two, one = keys_of((await client.get("/_mail/")).text)
        absent = "0123456789abcdef"
        assert await change("read", [one, two, absent]) == [("three", False), ("two", True), ("one", True)]
        assert await change("read", [one]) == [("three", False), ("two", True), ("one", True)]
        assert await change("unread", [two]) == [("three", False), ("two", False), ("one", True)]
        assert await change("delete", [three, one, absent]) == [("two", False)]
        wrong = await client.post("/_mail/selected", data={"action": "burn", "key": two}, headers=SAME_ORIGIN)
        foreign = await client.post("/_mail/selected", data={"action": "delete", "key": two})
        assert (wrong.status_code, foreign.status_code) == (400, 403)


async def test_a_message_stays_unread_while_its_page_only_updates_itself(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        await client.get(path)
        answer = await client.post(f"{path}/unread", headers=SAME_ORIGIN)
        assert answer.headers["location"] == "/_mail/"
        await client.get(path, headers={"X-Inbox-Refresh": "1"})
        assert '<li class="unread">' in (await client.get("/_mail/")).text
        await client.get(path)
        assert '<li class="read">' in (await client.get("/_mail/")).text


async def test_a_page_that_does_not_exist_says_so(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, _):
        for number in ("2", "999999"):
            assert "There is nothing on this page" in (await client.get(f"/_mail/?page={number}")).text
        for number in ("0", "-1", "x", "9999999"):
            assert len(keys_of((await client.get(f"/_mail/?page={number}")).text)) == 1


@pytest.mark.parametrize(("search", "gone"), [({"q": "to:ana"}, 2), ({"q": "june", "mailer": "bulk"}, 1), ({}, 3)])
async def test_the_messages_that_a_search_finds_are_deleted(
    inboxes: Inboxes, search: dict[str, str], gone: int
) -> None:
    async with three_messages(inboxes) as client:
        page = (await client.get("/_mail/", params=search)).text
        kept = set(keys_of((await client.get("/_mail/")).text)) - set(keys_of(page))
        form = re.search(r'action="/_mail/clear".*?</form>', page, re.DOTALL)
        assert form is not None
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form.group()))
        await client.post("/_mail/clear", data=fields, headers=SAME_ORIGIN)
        assert set(keys_of((await client.get("/_mail/")).text)) == kept
    assert len(kept) == 3 - gone
    assert ("Clear all…" in page) is (gone == 3)


async def test_nothing_found_is_not_offered_for_deletion(inboxes: Inboxes) -> None:
    async with three_messages(inboxes) as client:
        page = (await client.get("/_mail/", params={"q": "no such words"})).text
    assert "/_mail/clear" not in page
