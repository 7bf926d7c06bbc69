import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from openviper.conf import settings
from openviper.core.email import BulkProgress, send_many

settings.configure(
    EMAIL={
        "backend": "ConsoleBackend",
        "default_sender": "Shop <news@shop.example>",
        "inline_css": True,
        "site_url": "https://shop.example",
        "unsubscribe_keys": [os.environ.get("UNSUBSCRIBE_KEY", "?" * 32)],
    },
)


async def readers() -> AsyncIterator[tuple[str, str]]:
    """Read them from your database, a page at a time."""
    for name in ("Alice", "Bob", "Carol"):
        yield name, f"{name.lower()}@example.com"


async def messages() -> AsyncIterator[Mapping[str, Any]]:
    async for name, address in readers():
        yield {
            "recipients": [(name, address)],
            "template": "emails/news.html",
            "context": {"name": name},
        }


def show(counts: BulkProgress) -> None:
    print(f"{counts.done} done, {counts.failed} failed")


async def main() -> None:
    newsletter = send_many(
        messages(), stream="news", unsubscribe=True, progress=show
    )
    async for receipt in newsletter:
        if not receipt:
            print(f"message {receipt.index}: {receipt.error}")


if __name__ == "__main__":
    asyncio.run(main())
