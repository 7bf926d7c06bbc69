"""An SMTP server for measuring: accepts everything, counts messages and flights, and checks that each is complete.

Run as a process. It prints its port, serves until its standard input ends, then prints its report as JSON.
"""

import argparse
import asyncio
import email
import email.policy
import hashlib
import html
import json
import os
import re
import sys
from collections import deque
from email.message import Message
from pathlib import Path
from typing import Any

from content import Content

_SHOWN_FAULTS = 3
_END = b"\r\n.\r\n"


class Tally:
    """Counts of all connections, and their messages, which are checked after the run."""

    def __init__(self, progress: str | None) -> None:
        self.connections = 0
        self.flights = 0
        self.messages: list[tuple[list[bytes], bool]] = []  # as transmitted; True: after DATA, with the final dot
        self._progress = None if progress is None else os.open(progress, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def keep(self, content: list[bytes], *, stuffed: bool) -> None:
        self.messages.append((content, stuffed))
        if self._progress is not None:
            os.write(self._progress, b"x")


class Session(asyncio.Protocol):
    """One connection. ``delay``: seconds between a command's arrival and its reply."""

    def __init__(self, tally: Tally, options: argparse.Namespace) -> None:
        self._tally = tally
        self._options = options
        self._buffer = b""
        self._mode = b""
        self._missing = 0  # octets of the present BDAT chunk
        self._last_chunk = False
        self._content: list[bytes] = []
        self._tail = b""  # the last bytes received after DATA
        self._replies: list[bytes] = []
        self._delayed: deque[bytes] = deque()
        self._answered = True  # since the last read, a reply was sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._tally.connections += 1
        self._reply(b"220 sink.test ESMTP\r\n")
        self._send()

    def data_received(self, data: bytes) -> None:
        if self._answered and not self._delayed:
            self._tally.flights += 1
            self._answered = False
        self._buffer = self._buffer + data if self._buffer else data
        while self._buffer and self._step():
            pass
        self._send()

    def _step(self) -> bool:
        """Process the buffer; return False if more bytes are needed."""
        if self._mode == b"BDAT":
            return self._take_chunk()
        if self._mode == b"DATA":
            return self._take_data()
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer = rest
        self._command(line)
        return True

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb in (b"MAIL", b"RCPT", b"RSET", b"NOOP"):
            self._reply(b"250 2.0.0 ok\r\n")
        elif verb == b"BDAT":
            _, size, *last = line.split()
            self._mode, self._missing, self._last_chunk = b"BDAT", int(size), bool(last)
        elif verb == b"DATA":
            self._mode, self._tail = b"DATA", b"\r\n"
            self._reply(b"354 go ahead\r\n")
        elif verb == b"EHLO":
            offered = [b"sink.test", b"SIZE 100000000", b"8BITMIME", b"SMTPUTF8"]
            if self._options.pipelining:
                offered.append(b"PIPELINING")
            if self._options.chunking:
                offered.append(b"CHUNKING")
            self._reply(b"".join(b"250-%s\r\n" % each for each in offered[:-1]) + b"250 %s\r\n" % offered[-1])
        elif verb == b"HELO":
            self._reply(b"250 sink.test\r\n")
        elif verb == b"QUIT":
            self._reply(b"221 bye\r\n")
        else:
            self._reply(b"500 5.5.1 what?\r\n")

    def _take_chunk(self) -> bool:
        chunk, self._buffer = self._buffer[: self._missing], self._buffer[self._missing :]
        self._content.append(chunk)
        self._missing -= len(chunk)
        if self._missing:
            return False
        self._mode = b""
        if self._last_chunk:
            self._keep(stuffed=False)
        self._reply(b"250 2.0.0 ok\r\n")
        return True

    def _take_data(self) -> bool:
        # The final dot may be split over several reads.
        before = len(self._tail)
        end = (self._tail + self._buffer[:5]).find(_END)
        if end < 0:
            end = self._buffer.find(_END)
            end = end + before if end >= 0 else end
        if end < 0:
            self._content.append(self._buffer)
            self._tail = (self._tail + self._buffer[-4:])[-4:]
            self._buffer = b""
            return False
        end += len(_END) - before
        self._content.append(self._buffer[:end])
        self._buffer = self._buffer[end:]
        self._mode, self._tail = b"", b""
        self._keep(stuffed=True)
        self._reply(b"250 2.0.0 ok\r\n")
        return True

    def _keep(self, *, stuffed: bool) -> None:
        self._tally.keep(self._content, stuffed=stuffed)
        self._content = []

    def _reply(self, reply: bytes) -> None:
        self._replies.append(reply)

    def _send(self) -> None:
        if not self._replies:
            return
        replies = b"".join(self._replies)
        self._replies.clear()
        if self._options.delay:
            self._delayed.append(replies)
            asyncio.get_running_loop().call_later(self._options.delay, self._send_delayed)
        else:
            self._write(replies)

    def _send_delayed(self) -> None:
        self._write(self._delayed.popleft())

    def _write(self, replies: bytes) -> None:
        self._answered = True
        self._transport.write(replies)
        if replies.endswith(b"221 bye\r\n"):
            self._transport.close()


class Checker:
    """Checks messages with the standard library's parser."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._attachment = None if content.attachment is None else _digest(Path(content.attachment).read_bytes())
        self._newsletter: Any = None
        if content.template is not None:
            from jinja2 import Environment

            self._newsletter = Environment(autoescape=True).from_string(Path(content.template).read_text("utf-8"))
        self.seen: set[int] = set()

    def find_fault(self, data: bytes, *, stuffed: bool) -> str | None:
        """Return the fault of a message; None if it is complete."""
        if stuffed:
            data = data.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
        message = email.message_from_bytes(data, policy=email.policy.compat32)
        parts = {part.get_content_type(): part for part in message.walk()}
        text = _text(parts.get("text/plain"))
        found = re.search(r"your (?:order|issue) (\d+)\.", text)
        if found is None:
            return f"no text part with a number, but {sorted(parts)}"
        number = found[1]
        subject = self._content.filled(int(number))[0]
        if message["Subject"] != subject:
            return f"message {number}: subject {message['Subject']!r}"
        fault = self._find_body_fault(int(number), text, _text(parts.get("text/html")))
        if fault is not None:
            return f"message {number}: {fault}"
        if self._attachment is not None and number != "0":
            attached = [part for part in message.walk() if part.get_filename()]
            if [_digest(part.get_payload(decode=True)) for part in attached] != [self._attachment]:
                return f"message {number}: the attachment is not what was sent"
        if int(number) in self.seen:
            return f"message {number}: is a duplicate"
        self.seen.add(int(number))
        return None

    def _find_body_fault(self, number: int, text: str, markup: str) -> str | None:
        if self._newsletter is None:
            same = [_lines(text), _lines(markup)] == [_lines(body) for body in self._content.filled(number)[1:]]
            return None if same else "a body is not what was sent"
        context = self._content.context(number)
        if markup.split() != self._newsletter.render(context).split():
            return "the HTML is not what was rendered"
        # Django's strip_tags() leaves character references as they are.
        plain = " ".join(html.unescape(text).split())
        wanted = [context["name"], *(article["title"] for article in context["articles"])]
        if any(each not in plain for each in wanted) or "<p" in text:
            return "the text is not that of its HTML"
        return None


def _text(part: Message | None) -> str:
    return "" if part is None else part.get_payload(decode=True).decode()


def _lines(text: str) -> list[str]:
    return text.rstrip().splitlines()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def report(tally: Tally, content: Content) -> dict[str, object]:
    """Check all messages; return counts and faults for JSON."""
    checker = Checker(content)
    size = 0
    faults = []
    for pieces, stuffed in tally.messages:
        data = b"".join(pieces)
        size += len(data)
        fault = checker.find_fault(data, stuffed=stuffed)
        if fault is not None:
            faults.append(fault)
    return {
        "messages": len(tally.messages),
        "whole": len(checker.seen),
        "faults": faults[:_SHOWN_FAULTS],
        "connections": tally.connections,
        "flights": tally.flights,
        "bytes": size,
    }


async def serve(options: argparse.Namespace) -> Tally:
    """Accept mail on an ephemeral port of the loopback interface until standard input ends."""
    tally = Tally(options.progress)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Session(tally, options), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()
    return tally


def main() -> None:
    """Run the command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--content", required=True)
    parser.add_argument("--pipelining", action="store_true")
    parser.add_argument("--chunking", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--progress", help="file to which each received message adds one byte")
    options = parser.parse_args()
    tally = asyncio.run(serve(options))
    print(json.dumps(report(tally, Content.read(options.content))))


if __name__ == "__main__":
    main()
