"""A process that sends one message several times with the same idempotency key, and prints what it was told."""

import asyncio
import json
import sys
from typing import Any

from openviper.conf import settings
from openviper.core.email import EmailError, submit_email
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue import close_queue, worker_available
from openviper.db.transaction import Record, entered


async def main(given: dict[str, Any]) -> None:
    """Say "ready", wait for a line, then send ``count`` times at the same time."""
    while not await asyncio.to_thread(worker_available):  # the first question may time out on a busy machine
        await asyncio.sleep(0.1)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    sends = [asyncio.create_task(send(given)) for _ in range(given["count"])]
    print(json.dumps(await asyncio.gather(*sends)), flush=True)


async def send(given: dict[str, Any]) -> str:
    """Send as the place ``given["inside"]`` has it, and return what came of it."""
    if given["inside"] == "transaction":
        with entered(Record()):  # never committed: the process ends first
            await submit(given)
        return "held"
    if given["inside"] == "request":
        with collecting(RequestOutbox()):  # whose response never ends
            return await submit(given)
    return await submit(given)


async def submit(given: dict[str, Any]) -> str:
    """Return the outcome, "duplicate" before that of an earlier send, or "uncertain"."""
    try:
        receipt = await submit_email(
            "ana@example.com", "Your order", text="Thank you.", key=given["key"], background=given["background"]
        )
    except EmailError as error:
        return "uncertain" if getattr(error, "uncertain", False) else f"{type(error).__name__}: {error}"
    return f"duplicate {receipt.outcome}" if receipt.duplicate else receipt.outcome


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    settings.configure(TASKS=arguments["TASKS"], EMAIL=arguments["EMAIL"])
    asyncio.run(main(arguments))
    close_queue()
