"""Messages sent with ``sensitive=True`` on the inbox page: whole with ``DEBUG``, else without their content."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.inbox import SAME_ORIGIN, Inboxes, keys_of
from support.sensitive import RESET
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import send_email


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


async def seen(client: Any) -> str:
    """All that the page shows of its only message, in every form."""
    (key,) = keys_of((await client.get("/_mail/")).text)
    below = ["?view=text", "?view=headers", "?view=source", "?view=html", "?view=check", "/source", "/message.eml"]
    below += ["/html", "/attachments/0"]
    paths = [f"/_mail/{key}{each}" for each in below] + [f"/_mail/api/messages/{key}", "/_mail/api/messages"]
    paths += [f"/_mail/api/messages/{key}/source", f"/_mail/api/messages/{key}/attachments/0"]
    return "\n".join([(await client.get(path)).text for path in paths])


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize("debug", [True, False])
async def test_the_inbox_page_shows_it_with_debug_only(
    inboxes: Inboxes, tmp_path: Path, debug: bool, folder: bool
) -> None:
    settings: dict[str, Any] = {"inbox": "always", **({"inbox_dir": str(tmp_path)} if folder else {})}
    with override(DEBUG=debug):
        async with inboxes.open(**settings) as client:
            await send_email(**RESET)
            text = await seen(client)
            (key,) = keys_of((await client.get("/_mail/")).text)
            again = await client.post(f"/_mail/{key}/again", headers=SAME_ORIGIN)
            offered = "Send again" in (await client.get(f"/_mail/{key}")).text
    assert ("4711" in text) is debug
    assert ("Not shown: this message was sent with sensitive=True." in text) is not debug
    assert offered is debug
    assert again.status_code == (303 if debug else 409)
    assert debug or "4711" not in "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )


async def test_what_was_recorded_with_debug_is_hidden_without_it(inboxes: Inboxes, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"inbox": "always", "inbox_dir": str(tmp_path)}
    with override(DEBUG=True):
        async with inboxes.open(**settings) as client:
            await send_email(**RESET)
            assert "4711" in await seen(client)
    with override(DEBUG=False):
        async with inboxes.open(**settings) as client:
            text = await seen(client)
            assert (await client.get("/_mail/api/messages", params={"q": "4711"})).json()["messages"] == []
    assert "4711" not in text
    assert "Not shown" in text


async def test_a_failed_one_is_not_retried_from_the_page_without_debug(inboxes: Inboxes, server: SmtpServer) -> None:
    server.refuse("a@example.test", 550)
    with override(DEBUG=False):
        settings = server.settings(inbox="always", backend="SMTPBackend")
        async with inboxes.open(**settings) as client:
            await send_email(**RESET, fail_silently=True)
            (key,) = keys_of((await client.get("/_mail/")).text)
            server.behave()
            answer = await client.post(f"/_mail/{key}/retry", headers=SAME_ORIGIN)
            assert "Retry now" not in (await client.get(f"/_mail/{key}")).text
    assert answer.status_code == 409
    assert "was not kept" in answer.text
    assert server.messages == []
