"""A web process that a run starts: it sends what each JSON line of stdin says, and prints the receipts."""

import asyncio
import json
import logging
import sys
from typing import Any

from openviper.conf import settings
from openviper.core.email import AttachmentData, submit_email
from openviper.core.email.queue import close_queue, worker_available


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
    try:
        receipt = await submit_email(
            message["to"],
            f"Message {message['number']}",
            text="x" * 200,
            delay=message["delay"],
            mailer=message["mailer"],
            attachments=attachments if message["attachment"] else None,
        )
    except Exception as error:  # noqa: BLE001 - the run judges it
        answer |= {"error": f"{type(error).__name__}: {error}"}
    else:
        answer |= {"mode": receipt.mode, "message_id": receipt.message_id, "accepted": list(receipt.accepted)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    settings.configure(TASKS=given["TASKS"], EMAIL=given["EMAIL"])
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    asyncio.run(main())
    close_queue()
