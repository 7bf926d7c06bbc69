"""A copy of a message, sent to somebody else from the page."""

import re
from typing import Any

import httpx
import pytest
from support.inbox import SAME_ORIGIN, Inboxes, keys_of
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import send_email

KEY = "k" * 40
ORIGINAL: dict[str, Any] = {
    "recipients": "Ana <ana@example.test>",
    "subject": "Your order",
    "html": "<p>Thank you</p>",
    "cc": "cc@example.test",
    "bcc": "bcc@example.test",
    "attachments": [("order.csv", b"7,99.00", "text/csv")],
    "reply_to": "help@example.test",
    "headers": {"Disposition-Notification-To": "shop@example.test", "X-Campaign": "May"},
    "envelope_sender": "bounces+ana@example.test",
    "tags": ["order"],
}


async def release(client: httpx.AsyncClient, path: str, **form: str) -> httpx.Response:
    return await client.post(f"{path}/release", data=form, headers=SAME_ORIGIN)


async def test_a_copy_goes_to_its_address_alone_and_is_marked(inboxes: Inboxes) -> None:
    with SmtpServer() as server:
        async with inboxes.open(**server.settings(backend="SMTPBackend")) as client:
            await send_email(**ORIGINAL, key="order-7")
            (key,) = keys_of((await client.get("/_mail/")).text)
            form = (await client.get(f"/_mail/{key}/release")).text
            answer = await release(client, f"/_mail/{key}", to="me@example.test")
            original, copy = await server.arrive(2)
            page = (await client.get(answer.headers["location"])).text
    assert "own recipients get nothing" in form
    assert original.recipients == ["ana@example.test", "cc@example.test", "bcc@example.test"]
    assert copy.recipients == ["me@example.test"]
    assert (original.sender, copy.sender) == ("bounces+ana@example.test", "shop@example.test")
    sent = copy.parse()
    assert sent["Subject"] == "[Copy] Your order"
    assert sent["X-Copy-Of"] == original.parse()["Message-ID"] != sent["Message-ID"]
    assert (sent["To"], sent["Cc"], sent["Reply-To"]) == ("me@example.test", None, "help@example.test")
    assert sent["X-Campaign"] == "May"
    assert "Disposition-Notification-To" not in sent
    assert b"ana@" not in copy.content.replace(b"bounces+ana@", b"")
    assert re.search(r"a copy of &lt;[0-9a-f]{32}@example\.test&gt;, sent from the inbox page", page)


async def test_a_copy_unsubscribes_nobody(inboxes: Inboxes) -> None:
    links: dict[str, Any] = {"unsubscribe_keys": [KEY], "site_url": "https://shop.example"}
    async with inboxes.open(**links) as client:
        await send_email("ana@example.test", "News", "Hello", stream="news", unsubscribe=True)
        (key,) = keys_of((await client.get("/_mail/")).text)
        headers = dict((await client.get(f"/_mail/api/messages/{key}")).json()["headers"])
        link = headers["List-Unsubscribe"].strip("<>")
        body: dict[str, Any] = {"text": f"Leave: {link}", "html": f'<a href="{link}">Leave</a>'}
        await send_email("ana@example.test", "News", **body, stream="news", unsubscribe=True)
        key, _ = keys_of((await client.get("/_mail/")).text)
        answer = await release(client, f"/_mail/{key}", to="me@example.test")
        copied = answer.headers["location"].rpartition("/")[2]
        copy = (await client.get(f"/_mail/api/messages/{copied}")).json()
    assert copy["text"] == "Leave: https://shop.example/unsubscribe/redirected"
    assert copy["html"] == '<a href="https://shop.example/unsubscribe/redirected">Leave</a>'
    assert not [name for name, _ in copy["headers"] if name.startswith("List-")]


async def test_the_mailer_is_chosen_and_suppression_applies(inboxes: Inboxes) -> None:
    with SmtpServer() as server, SmtpServer() as bulk:
        mailers = {"bulk": bulk.settings()}
        settings = server.settings(backend="SMTPBackend", mailers=mailers, suppress=f"{__name__}.suppress_one")
        async with inboxes.open(**settings) as client:
            await send_email("ana@example.test", "Hello", "Hi")
            (key,) = keys_of((await client.get("/_mail/")).text)
            await release(client, f"/_mail/{key}", to="me@example.test", mailer="bulk")
            (copy,) = await bulk.arrive(1)
            answer = await release(client, f"/_mail/{key}", to="left@example.test")
            copied = answer.headers["location"].rpartition("/")[2]
            found = await client.get(
                "/_mail/api/messages/wait", params={"q": "left@example.test", "state": "suppressed"}
            )
            unknown = await release(client, f"/_mail/{key}", to="me@example.test", mailer="other")
    assert copy.recipients == ["me@example.test"]
    assert found.json()["key"] == copied
    assert len(server.messages) == 1
    assert unknown.status_code == 422
    assert "other" in unknown.text


async def suppress_one(recipients: Any, stream: str | None) -> Any:
    return [address for address in recipients if address == "left@example.test"]


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("ana@example.test", "is a recipient of this message"),
        ("ANA@EXAMPLE.TEST", "is a recipient of this message"),
        ("Bcc <bcc@example.test>", "is a recipient of this message"),
        ("", "to:"),
        ("nobody", "has no &#39;@&#39;"),
        ("a@example.test, b@example.test", "to:"),
        ("a@example.test\r\nBcc: b@example.test", "to:"),
    ],
)
async def test_what_is_no_other_address_is_refused(inboxes: Inboxes, to: str, reason: str) -> None:
    async with inboxes.with_message(**ORIGINAL) as (client, path):
        answer = await release(client, path, to=to)
        assert answer.status_code == 422
        assert reason in answer.text
        assert len(keys_of((await client.get("/_mail/")).text)) == 1


async def test_a_redirected_copy_goes_where_all_mail_goes(inboxes: Inboxes) -> None:
    with SmtpServer() as server:
        async with inboxes.open(**server.settings(backend="SMTPBackend", redirect_to=["team@x.test"])) as client:
            await send_email("ana@example.test", "Hello", "Hi")
            (key,) = keys_of((await client.get("/_mail/")).text)
            await release(client, f"/_mail/{key}", to="me@example.test")
            messages = await server.arrive(2)
    assert [message.recipients for message in messages] == [["team@x.test"], ["team@x.test"]]


async def test_it_needs_debug_and_the_page_itself(inboxes: Inboxes) -> None:
    async with inboxes.open(inbox="always") as client:
        await send_email("ana@example.test", "Hello", "Hi")
        (key,) = keys_of((await client.get("/_mail/")).text)
        path = f"/_mail/{key}"
        foreign = await client.post(f"{path}/release", data={"to": "me@x.test"}, headers={"Origin": "http://evil.test"})
        plain = await client.post(f"{path}/release", data={"to": "me@x.test"})
        assert "Send a copy" in (await client.get(path)).text
        assert [foreign.status_code, plain.status_code] == [403, 403]
        assert len(keys_of((await client.get("/_mail/")).text)) == 1
    with override(DEBUG=False):
        async with inboxes.open(inbox="always") as client:
            await send_email("ana@example.test", "Hello", "Hi")
            (key,) = keys_of((await client.get("/_mail/")).text)
            assert "Send a copy" not in (await client.get(f"/_mail/{key}")).text
            assert (await client.get(f"/_mail/{key}/release")).status_code == 404
            assert (await release(client, f"/_mail/{key}", to="me@x.test")).status_code == 404
            assert len(keys_of((await client.get("/_mail/")).text)) == 1
