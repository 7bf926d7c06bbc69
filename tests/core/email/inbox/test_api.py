"""The inbox as JSON."""

import asyncio

import pytest
from support.inbox import Inboxes

from openviper.core.email import AttachmentData, send_email

MESSAGES = "/_mail/api/messages"


async def test_a_message_is_told_whole(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        await send_email(
            '"Ana" <a@example.test>',
            "Grüße",
            "The text",
            "<p>The HTML",
            cc="c@example.test",
            bcc="b@example.test",
            reply_to="r@example.test",
            headers={"X-Order": "17"},
            envelope_sender="bounce@example.test",
            attachments=[AttachmentData("ü.txt", b"four", "text/plain")],
        )
        (summary,) = (await client.get(MESSAGES)).json()["messages"]
        answer = await client.get(f"{MESSAGES}/{summary['key']}")
        attachment = await client.get(f"{MESSAGES}/{summary['key']}/attachments/0")
        source = await client.get(f"{MESSAGES}/{summary['key']}/source")
    message = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert {**message, **summary} == message
    assert (message["subject"], message["text"], message["html"]) == ("Grüße", "The text", "<p>The HTML")
    assert (message["to"], message["cc"], message["bcc"]) == (
        ['"Ana" <a@example.test>'], ["c@example.test"], ["b@example.test"],
    )  # fmt: skip
    assert message["recipients"] == ["a@example.test", "c@example.test", "b@example.test"]
    assert (message["reply_to"], message["envelope_sender"]) == (["r@example.test"], "bounce@example.test")
    assert ["X-Order", "17"] in message["headers"]
    assert ["Subject", "Grüße"] in message["headers"]
    assert (message["mode"], message["state"], message["read"]) == ("inline", "delivered", False)
    assert [step["kind"] for step in message["timeline"]] == ["sending", "delivered"]
    assert message["attachments"] == [
        {"filename": "ü.txt", "mimetype": "text/plain", "size": 4, "inline": False, "content_id": None}
    ]
    assert attachment.content == b"four"
    assert source.text.count("Message-ID: ") + source.text.count("Message-Id: ") == 1


@pytest.mark.parametrize(
    ("query", "subjects"),
    [
        ("", ["two", "one"]),
        ("?subject=ONE", ["one"]),
        ("?to=b@example", ["two"]),
        ("?q=body+first", ["one"]),
        ("?state=delivered&to=a@", ["one"]),
        ("?state=failed", []),
        ("?after=x&q=", ["two", "one"]),
        ("?after=99999999999999999999999", ["two", "one"]),
        ("?after=9999999999999999", []),
    ],
)
async def test_the_list_can_be_narrowed(inboxes: Inboxes, query: str, subjects: list[str]) -> None:
    async with inboxes.open() as client:
        await send_email("a@example.test", "one", text="The first body")
        await send_email("b@example.test", "two", text="The second body")
        messages = (await client.get(f"{MESSAGES}{query}")).json()["messages"]
    assert [message["subject"] for message in messages] == subjects


async def test_a_test_deletes_one_or_all(inboxes: Inboxes) -> None:
    """A program that is no browser says neither where it comes from, nor does it use a form."""
    async with inboxes.open() as client:
        for subject in ("one", "two", "three"):
            await send_email("a@example.test", subject, text="")
        (first, *_) = (await client.get(MESSAGES)).json()["messages"]
        assert (await client.delete(f"{MESSAGES}/{first['key']}")).status_code == 204
        assert (await client.delete(f"{MESSAGES}/{first['key']}")).status_code == 404
        assert len((await client.get(MESSAGES)).json()["messages"]) == 2
        assert (await client.delete(MESSAGES)).status_code == 204
        assert (await client.get(MESSAGES)).json() == {"messages": [], "cursor": "0"}


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_another_site_deletes_nothing(inboxes: Inboxes, headers: dict[str, str]) -> None:
    async with inboxes.open() as client:
        await send_email("a@example.test", "one", text="")
        assert (await client.delete(MESSAGES, headers=headers)).status_code == 403
        preflight = {**headers, "Access-Control-Request-Method": "DELETE"}
        assert (await client.options(MESSAGES, headers=preflight)).status_code == 403
        assert len((await client.get(MESSAGES)).json()["messages"]) == 1


@pytest.mark.parametrize("path", ["/0123456789abcdef", "/0123456789abcdef/source", "/x/attachments/0", "/x/y/z"])
async def test_what_is_not_there_is_told_as_json(inboxes: Inboxes, path: str) -> None:
    async with inboxes.open() as client:
        answer = await client.get(f"{MESSAGES}{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]


async def test_the_cursor_is_of_a_message_that_the_list_has(inboxes: Inboxes) -> None:
    """Who waits for messages after the cursor would miss one that arrives between list and cursor."""
    async with inboxes.open() as client:

        async def send(number: int) -> None:
            await send_email("a@example.test", str(number), text="")

        async def read() -> None:
            answer = (await client.get(MESSAGES)).json()
            assert answer["cursor"] == max((one["cursor"] for one in answer["messages"]), key=int, default="0")

        await asyncio.gather(*(one for number in range(100) for one in (send(number), read())))
