"""Sends a number of messages one after another, for a run whose instructions are counted; see ``instructions.py``."""

import argparse
import asyncio

from content import Content


async def _send(to: str, content: Content, count: int) -> None:
    from openviper.core.email import send_email

    for number in range(count):
        subject, text, html = content.filled(number)
        await send_email(to, subject, text, html)


def main() -> None:
    """Send as the command line says: over real SMTP with ``--port``, else to the memory backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    content = Content.read(options.content)

    from openviper.conf import settings

    transport = {"backend": "MemoryBackend"} if options.port is None else {"host": "127.0.0.1", "port": options.port}
    settings.configure(EMAIL={"default_sender": content.sender, "pool_size": 1, **transport})
    asyncio.run(_send("customer@example.com", content, options.count))


if __name__ == "__main__":
    main()
