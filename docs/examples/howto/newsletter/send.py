import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from openviper.conf import settings
from openviper.core.email import BulkProgress, send_many

settings.configure(
    EMAIL={
        "backend": "ConsoleBackend",
        "default_sender": "Shop <news@shop.example>",
        "inline_css": True,
    },
)


async def readers() -> AsyncIterator[tuple[str, str]]:
    """Read them from your database, a page at a time."""
    for name in ("Alice", "Bob", "Carol"):
        yield name, f"{name.lower()}@example.com"


async def messages() -> AsyncIterator[Mapping[str, Any]]:
    async for name, address in readers():
        leave = f"https://shop.example/leave?reader={address}"
        yield {
            "recipients": [(name, address)],
            "template": "emails/news.html",
            "context": {"name": name, "leave": leave},
            "headers": {"List-Unsubscribe": f"<{leave}>"},
            "stream": "news",
        }


def show(counts: BulkProgress) -> None:
    print(f"{counts.done} done, {counts.failed} failed")


async def main() -> None:
    async for receipt in send_many(messages(), progress=show):
        if not receipt:
            print(f"message {receipt.index}: {receipt.error}")


if __name__ == "__main__":
    asyncio.run(main())
