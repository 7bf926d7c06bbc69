"""A web process that a run starts: it sends what each JSON line of stdin says, and prints the receipts."""

import asyncio
import json
import logging
import sys
from typing import Any

from openviper.conf import settings
from openviper.core.email import AttachmentData, Receipt, send_many, submit_email
from openviper.core.email.queue import close_queue, worker_available
from openviper.db import transaction

_DATABASE_LIMIT = 15.0  # seconds for an application's statements; a commit and a delivery have limits of their own


async def main() -> None:
    """Send until stdin ends; the messages of one line go at the same time."""
    await asyncio.to_thread(worker_available)
    print(json.dumps({"ready": True}), flush=True)
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sending: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        for message in json.loads(line):
            task = asyncio.create_task(send(message))
            sending.add(task)
            task.add_done_callback(sending.discard)
    await asyncio.gather(*sending)


async def send(message: dict[str, Any]) -> None:
    """Send one message, and print what came of it."""
    answer: dict[str, Any] = {"number": message["number"]}
    attachments = [AttachmentData("data.bin", bytes([message["number"] % 256]) * message["attachment"])]
    values: dict[str, Any] = {
        "recipients": message["to"],
        "subject": f"Message {message['number']}",
        "text": "x" * 200,
        "mailer": message["mailer"],
        "attachments": attachments if message["attachment"] else None,
    }
    try:
        if settings.EMAIL.get("outbox"):
            async with asyncio.timeout(_DATABASE_LIMIT):
                receipt = await store(values, message["delay"], held=message["held"])
        else:
            receipt = await submit_email(**values, delay=message["delay"])
    except Exception as error:  # noqa: BLE001 - the run judges it
        answer |= {"error": f"{type(error).__name__}: {error}"}
    else:
        answer |= {"mode": receipt.mode, "message_id": receipt.message_id, "accepted": list(receipt.accepted)}
    print(json.dumps(answer), flush=True)


async def store(values: dict[str, Any], delay: float | None, *, held: bool) -> Receipt:
    """Store a message in the outbox: by a commit, for a relay, or for later."""
    if held:
        async with transaction():
            return await submit_email(**values)
    if delay is not None:
        return await submit_email(**values, delay=delay)
    async for receipt in send_many([values], background=True):
        if receipt.error is not None:
            raise receipt.error
        return receipt
    raise AssertionError("there is a receipt for each message")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    settings.configure(**given)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    asyncio.run(main())
    close_queue()
