"""Which template, which values by name and which line of code sent a message."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.inbox import Inboxes, keys_of

from openviper.conf import override
from openviper.core.email import EmailMessageData, send_email, submit_email
from openviper.core.email.message import check_message
from openviper.core.email.message.origin import Origin, read_origin, recorders

HERE = Path(__file__).name


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    (tmp_path / "emails").mkdir()
    (tmp_path / "emails/order.html").write_text("{% block subject %}Order{% endblock %}<p>{{ number }} {{ name }}")
    return tmp_path


async def order(_request: Request) -> Response:
    await send_email("a@example.test", template="emails/order", context={"number": 7, "name": "Secret"})
    return PlainTextResponse("ok")


LINE = order.__code__.co_firstlineno + 1


@pytest.mark.parametrize("in_folder", [False, True])
async def test_the_page_names_template_values_and_line(
    inboxes: Inboxes, templates: Path, tmp_path: Path, in_folder: bool
) -> None:
    folder: dict[str, Any] = {"inbox_dir": tmp_path / "inbox"} if in_folder else {}
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open(Starlette(routes=[Route("/", order)]), **folder) as client:
            await client.get("/")
            (key,) = keys_of((await client.get("/_mail/")).text)
            page = (await client.get(f"/_mail/{key}")).text
            found = (await client.get(f"/_mail/api/messages/{key}")).json()["origin"]
            source = (await client.get(f"/_mail/{key}/source")).text
    place = Path(__file__).relative_to(Path.cwd())
    assert found == {"template": "emails/order", "context": ["number", "name"], "code": f"{place}:{LINE} in order"}
    assert 'href="/_mail/templates/emails/order">emails/order</a>' in page
    assert "<dd>number, name</dd>" in page
    assert f"<code>{place}:{LINE} in order</code>" in page
    assert str(place) not in source


async def test_a_send_that_begins_a_task_has_no_line(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        await asyncio.create_task(send_email("a@example.test", "Hello", "Hi"))
        (message,) = (await client.get("/_mail/api/messages")).json()["messages"]
        found = (await client.get(f"/_mail/api/messages/{message['key']}")).json()["origin"]
        page = (await client.get(f"/_mail/{message['key']}")).text
    assert found == {"template": None, "context": [], "code": None}
    assert "Sent by" not in page


async def test_nothing_is_noted_without_an_inbox(inboxes: Inboxes) -> None:
    """A send in production neither looks for its caller nor stores it."""
    async with inboxes.open():
        assert len(recorders) == 1
    assert recorders == []
    async with inboxes.open(inbox=False):
        assert recorders == []
        calls: list[str] = []
        sys.setprofile(lambda frame, *_: calls.append(frame.f_code.co_name))
        try:
            await submit_email("a@example.test", "Hello", "Hi")
        finally:
            sys.setprofile(None)
    assert "prepare_message" in calls
    assert "with_origin" not in calls


@pytest.mark.parametrize("stored", [7, "x", [], {"template": 7, "names": "ab", "code": []}, {"names": [1, "a"]}])
def test_what_another_version_has_noted_is_left_out(stored: Any) -> None:
    data = EmailMessageData("a@example.test", "Hello", "Hi", sender="b@example.test")
    message = check_message(data, default_sender=None)._replace(extra={"origin": stored})
    names = ("a",) if stored == {"names": [1, "a"]} else ()
    assert read_origin(message) == Origin(None, names, None)
