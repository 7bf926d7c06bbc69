"""Applications that send mail and show it on the inbox page, and a browser-like client for them."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from openviper.core.email import EmailMiddleware, send_email
from openviper.core.email.delivery import Mailer
from openviper.core.email.inbox import PATH, Inbox
from openviper.core.email.inbox.store import MemoryStore
from openviper.core.email.settings import EmailSettings
from support.lifespan import Lifespan

__all__ = ["SAME_ORIGIN", "Inboxes", "directives", "every_address", "keys_of"]

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
MEMORY = {"backend": "MemoryBackend", "default_sender": "Shop <shop@example.test>"}


class Inboxes:
    """Opens an application, by default one without routes of its own, under the given settings of mail."""

    @asynccontextmanager
    async def open(
        self,
        app: ASGIApp | None = None,
        *,
        root_path: str = "",
        base_url: str = "http://127.0.0.1:8000",
        **settings: Any,
    ) -> AsyncIterator[httpx.AsyncClient]:
        wrapped = EmailMiddleware(app or Starlette(), {**MEMORY, **settings})
        async with Lifespan(wrapped) as manager:
            transport = httpx.ASGITransport(manager.app, root_path=root_path)
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
                yield client

    @asynccontextmanager
    async def with_message(self, **message: Any) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
        """One application that has sent one message: its client and the path of the message's page."""
        async with self.open() as client:
            await send_email(**{"recipients": "a@example.test", "subject": "Hello", "text": "Hello", **message})
            (key,) = keys_of((await client.get("/_mail/")).text)
            yield client, f"/_mail/{key}"


def keys_of(page: str) -> list[str]:
    """The messages that a page of the inbox lists, in its order."""
    return list(dict.fromkeys(re.findall(r'href="[^"]*/_mail/([0-9a-f]{16})["?]', page)))


def directives(headers: Mapping[str, str]) -> dict[str, str]:
    """A Content-Security-Policy by directive."""
    pairs = (part.strip().partition(" ") for part in headers["content-security-policy"].split(";"))
    return {name: value for name, _, value in pairs}


async def every_address(key: str) -> list[tuple[str, str]]:
    """Method and path of all that the page answers, for the message ``key``."""
    inbox = Inbox(Mailer(EmailSettings.load({"backend": "MemoryBackend"})), MemoryStore())
    await inbox.aclose()
    values = {"key": key, "index": "0", "name": "logo"}
    addresses = []
    for route in inbox._router.routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values[match[1]], route.path)
        addresses += [(method, PATH + path) for method in route.methods or ()]
    return [("GET", PATH), *addresses]
