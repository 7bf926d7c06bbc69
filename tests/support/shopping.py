"""The example shop, opened over ASGI, and people who visit it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module, reload

import httpx

from openviper.core.email.backends.memory import sent
from openviper.core.email.message import OutgoingMessage
from support.lifespan import Lifespan

__all__ = ["Shop", "Visitor"]

ADDRESS = "Rua Augusta 12\r\n1100-053 Lisboa"


class Visitor:
    """A browser without scripts: it keeps cookies, follows no redirect and posts the fields of a form."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def post(
        self, path: str, fields: Mapping[str, str] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        sent_headers = {"Sec-Fetch-Site": "same-origin", **(headers or {})}
        return await self.client.post(path, data=fields or {"": ""}, headers=sent_headers)

    async def add(self, name: str, times: int = 1) -> None:
        """Put a product in the cart by its name on the shelf."""
        shelf = (await self.get("/")).text
        card = next(card for card in shelf.split("<li ") if f"<h2>{name}</h2>" in card)
        product = re.search(r'name="product" value="(\d+)"', card)
        assert product is not None, f"{name} is not for sale"
        for _ in range(times):
            assert (await self.post("/cart", {"product": product[1], "add": "1"})).status_code == 303

    async def form_token(self) -> str:
        match = re.search(r'name="token" value="([^"]+)"', (await self.get("/checkout")).text)
        assert match is not None
        return match[1]

    async def check_out(self, **changes: str) -> httpx.Response:
        """Fill in and send the checkout form; ``changes`` replace or add fields."""
        fields = {"name": "Ana Costa", "email": "ana@example.com", "address": ADDRESS}
        return await self.post("/checkout", {"token": await self.form_token(), **fields, **changes})


class Shop:
    """One database, and the application opened on it as often as a test wants to."""

    @asynccontextmanager
    async def open(self, *, host: str = "127.0.0.1") -> AsyncIterator[Callable[[], Visitor]]:
        """Start the application; leaving delivers what is on its way. ``host``: where its visitors come from."""
        # Again for each start: the application reads DEBUG when it is made.
        application = await asyncio.to_thread(lambda: reload(import_module("example_shop.shop.app")).app)
        async with Lifespan(application) as manager:
            clients: list[httpx.AsyncClient] = []

            def visitor() -> Visitor:
                transport = httpx.ASGITransport(manager.app, client=(host, 50000), raise_app_exceptions=False)
                clients.append(httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000"))
                return Visitor(clients[-1])

            try:
                yield visitor
            finally:
                for client in clients:
                    await client.aclose()

    @asynccontextmanager
    async def visited(self) -> AsyncIterator[Visitor]:
        """The shop with one visitor in it."""
        async with self.open() as visitor:
            yield visitor()

    @property
    def mail(self) -> Sequence[OutgoingMessage]:
        return list(sent)
