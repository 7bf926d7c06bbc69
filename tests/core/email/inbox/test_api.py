"""The inbox as JSON."""

import asyncio
import re

import pytest
from support.inbox import Inboxes

from openviper.core.email import AttachmentData, send_email
from openviper.core.email.inbox.api_reference import ROUTES

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
        ("?after=0", ["two", "one"]),
        ("?after=9999999999999999", []),
        ("?before=9999999999999999&limit=1", ["two"]),
        ("?q=-to:b@+is:unread+after:2000-01-01", ["one"]),
        ("?to=example.test&to=a@", ["one"]),
        ("?is=read", []),
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


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("?sate=failed", "there is no parameter 'sate' (known: q, from, to, cc"),
        ("?state=delivred", "state: there is no 'delivred' (known: held, "),
        ("?state=delivred", "did you mean 'delivered'?"),
        ("?q=form:ana", "q: form: is not an operator, so it was searched as text; did you mean 'from'?"),
        ("?q=is:new", "is: there is no 'new' (known: unread, read)"),
        ("?after=yesterday", "after: 'yesterday' is not a date"),
        ('?q=""+one', 'q: the phrase "" is empty'),
        ("?limit=0", "limit: must be from 1 to 500, not '0'"),
        ("/wait?timeout=x", "timeout: must be from 0 to 60, not 'x'"),
        ("/wait?limit=1", "there is no parameter 'limit'"),
        ("/0123456789abcdef?view=html", "there is no parameter 'view' (known: none)"),
    ],
)
async def test_a_mistake_is_refused_with_what_is_known(inboxes: Inboxes, path: str, error: str) -> None:
    async with inboxes.open() as client:
        answer = await client.get(f"{MESSAGES}{path}")
    assert answer.status_code == 400
    assert error in answer.json()["error"]


async def test_an_empty_parameter_is_refused_by_its_name(inboxes: Inboxes) -> None:
    """A program that has left it empty by mistake would find, or delete, more than it means."""
    values = {"key": "0123456789abcdef", "index": "0"}
    count = 0
    async with inboxes.open() as client:
        await send_email("a@example.test", "one", text="")
        for route in ROUTES:
            path = "/_mail" + re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values[match[1]], route.path)
            for name in route.parameters:
                for query in (f"{name}=", name, f"{name}=%20", f"{name}=x&{name}=", f"{route.parameters[0]}=1&{name}="):
                    answer = await client.request(route.method, f"{path}?{query}")
                    assert answer.status_code == 400, f"{route.method} {path}?{query}"
                    error = f"{name}: is empty; give a value, or leave the parameter out"
                    assert answer.json() == {"error": error}
                    count += 1
        assert count > 200
        assert len((await client.get(MESSAGES)).json()["messages"]) == 1


async def test_a_search_deletes_its_matches_and_a_wrong_one_nothing(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        for subject in ("one", "two"):
            await send_email("a@example.test", subject, text="")
        for mistake in ("?to=&is=unread", '?q=""', '?q=""+to:a', "?q=to:", "?q=%20", "?subjct=one"):
            assert (await client.delete(f"{MESSAGES}{mistake}")).status_code == 400
        assert (await client.delete(f"{MESSAGES}?subject=one")).status_code == 204
        assert [one["subject"] for one in (await client.get(MESSAGES)).json()["messages"]] == ["two"]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("al=1", "there is no parameter 'al' (known: id, all); did you mean 'all'?"),
        ("all=true", "all: must be 1, not 'true'"),
        ("id=x&all=0", "all: must be 1, not '0'"),
        ("id=x&all=1", "Give either the failed messages' ids or all=1."),
        ("", "Give either the failed messages' ids or all=1."),
    ],
)
async def test_failed_mail_knows_its_own_parameters(inboxes: Inboxes, query: str, error: str) -> None:
    async with inboxes.open() as client:
        for method, path in (("DELETE", "failed"), ("PUT", "failed/retry")):
            answer = await client.request(method, f"/_mail/api/{path}?{query}")
            assert (answer.status_code, answer.json()) == (400, {"error": error})


async def test_the_api_has_a_page_for_people(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        answer = await client.get("/_mail/api")
        with_slash = await client.get("/_mail/api/nothing")
    assert answer.headers["content-type"].startswith("text/html")
    for shown in (
        "<code>GET /_mail/api/messages/wait</code>",
        "<code>template</code>",
        "<code>perhaps_delivered</code>",
    ):
        assert shown in answer.text
    assert with_slash.json()["error"]
