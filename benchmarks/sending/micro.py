"""Measure the parts of a send, on one processor and without a server. Run as a process; prints microseconds."""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable

from content import Content
from measure import print_result

from openviper.conf import settings
from openviper.core.email import DeliveryReport, EmailBackend, EmailMessageData, send_email
from openviper.core.email.message import OutgoingMessage, check_message
from openviper.core.email.message.plaintext import html_to_text
from openviper.core.email.message.serialiser import serialise

_ROUNDS = 15
_CELL = (
    '<td width="280" valign="top" style="padding: 12px 10px; font-family: Helvetica, Arial, sans-serif; '
    'font-size: 14px; line-height: 20px; color: #333333">'
    '<a href="https://shop.test/offers/{n}?utm_source=newsletter&amp;utm_medium=email" style="color: #0645ad">'
    '<img src="https://shop.test/images/{n}.jpg" width="260" alt="Offer {n}" style="display: block"></a>'
    "<h3>Offer {n}</h3><p>A teapot for everyday use, made in small numbers and by hand; it keeps its warmth for "
    'an hour. <a href="https://shop.test/offers/{n}">Have a look</a></p></td>'
)


class Discard(EmailBackend):
    """Accepts every message and discards it."""

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        return DeliveryReport(message.envelope.recipients)


def newsletter(size: int) -> str:
    """Return at least ``size`` characters of HTML in the table layout that mail clients need."""
    rows: list[str] = []
    while sum(map(len, rows)) < size:
        cells = "".join(_CELL.replace("{n}", str(2 * len(rows) + column)) for column in (1, 2))
        rows.append(f"<tr>{cells}</tr>\n")
    head = "<!doctype html><html><head><style>body { margin: 0 } td { border: 0 }</style></head><body>"
    return f'{head}<table role="presentation" width="600">{"".join(rows)}</table></body></html>'


def time_calls(function: Callable[[], object], calls: int) -> float:
    """Return the microseconds of one call, as the median of several rounds."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls * 1e6

    return statistics.median(once() for _ in range(_ROUNDS))


async def time_send(content: Content, calls: int) -> float:
    """Return the microseconds of ``send_email`` to a backend that does nothing."""
    subject, text, html = content.filled(1)
    rounds: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            await send_email("customer@example.com", subject, text, html)
        rounds.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(rounds)


def main() -> None:
    """Run the command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", required=True)
    content = Content.read(parser.parse_args().content)
    settings.configure(EMAIL={"backend": "micro.Discard", "default_sender": content.sender})
    subject, text, html = content.filled(1)
    data = EmailMessageData(recipients="customer@example.com", subject=subject, text=text, html=html)
    message = check_message(data, default_sender=content.sender)
    page = newsletter(30_000)
    print_result({
        "prepare": time_calls(lambda: check_message(data, default_sender=content.sender), 2000),
        "serialise": time_calls(lambda: serialise(message), 2000),
        "send_email": asyncio.run(time_send(content, 2000)),
        "html_to_text": time_calls(lambda: html_to_text(page), 20),
    })  # fmt: skip


if __name__ == "__main__":
    main()
