"""With several mailers the inbox page says by which each message goes, and shows the mail of one."""

from typing import Any

import httpx
from support.inbox import Inboxes, keys_of

from openviper.core.email import send_email

MAILERS: dict[str, Any] = {"mailers": {"bulk": {}, "unused": {}}}


async def sent(client: httpx.AsyncClient) -> dict[str, str]:
    """Send a message by each mailer, and return their keys by subject."""
    await send_email("a@example.test", "Reset", text="Your code")
    await send_email("a@example.test", "June", text="News", mailer="bulk")
    listed = (await client.get("/_mail/api/messages")).json()["messages"]
    assert [(one["subject"], one["mailer"]) for one in listed] == [("June", "bulk"), ("Reset", "default")]
    return {one["subject"]: one["key"] for one in listed}


async def test_the_list_shows_the_mail_of_one_mailer(inboxes: Inboxes) -> None:
    async with inboxes.open(**MAILERS) as client:
        keys = await sent(client)
        assert keys_of((await client.get("/_mail/")).text) == [keys["June"], keys["Reset"]]
        page = (await client.get("/_mail/?mailer=bulk")).text
        assert keys_of(page) == [keys["June"]]
        assert '<a href="/_mail/?mailer=bulk" aria-current="page">bulk</a>' in page
        assert keys_of((await client.get("/_mail/?mailer=default")).text) == [keys["Reset"]]
        searched = (await client.get("/_mail/?mailer=bulk&q=code")).text
        assert "Nothing matches “code” among the mail of the mailer bulk" in searched
        assert '<a href="/_mail/?mailer=default&amp;q=code">default</a>' in searched.replace("&q", "&amp;q")
        assert '<input type="hidden" name="mailer" value="bulk">' in searched
        assert "No message was sent by the mailer unused" in (await client.get("/_mail/?mailer=unused")).text
        found = (await client.get("/_mail/api/messages?mailer=bulk")).json()["messages"]
        assert [one["key"] for one in found] == [keys["June"]]


async def test_a_message_says_by_which_mailer_it_goes(inboxes: Inboxes) -> None:
    async with inboxes.open(**MAILERS) as client:
        keys = await sent(client)
        assert "<dt>Mailer</dt><dd>bulk</dd>" in (await client.get(f"/_mail/{keys['June']}")).text
        assert "<dt>Mailer</dt>" not in (await client.get(f"/_mail/{keys['Reset']}")).text


async def test_one_mailer_has_no_filter(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, _):
        assert 'aria-label="Mailers"' not in (await client.get("/_mail/")).text
