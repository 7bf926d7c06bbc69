"""Signed messages of all shapes, by seed, sent through a real server and verified as they arrived."""

import asyncio
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openviper.core.email import send_many
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.settings import EmailSettings
from support.dkim_keys import ED25519, RSA, is_valid, records
from support.exim import Exim
from support.opendkim import verified_by_opendkim
from support.postfix import Postfix

__all__ = ["KEYS", "Verified", "shapes", "verify_through"]

KEYS = {
    "rsa.example": {"r": RSA},
    "ed.example": {"e": ED25519},
    "both.example": {"e": ED25519, "r": RSA},
}
_TEXTS = (
    "Hello",
    "\n",
    "Hello\n\n\n\n",
    "trailing blanks  \n \t\n\n",
    ".\n..\nFrom here on\n",
    "Grüße, 日本 😀\r\n" * 20,
    "a long line " * 300,
    "tab\tand  two  spaces\r\n\r\nend",
)
_SUBJECTS = ("June", "Grüße aus 東京 " * 9, "two  blanks  inside", "very long " * 40, "x" * 200, "😀")
_PEOPLE = (
    "ann@example.com",
    "Annika Å <annika@example.com>",
    '"Bond, James" <james@example.com>',
    "日本 <jp@example.com>",
)
_CALENDAR = (
    "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//shop//EN\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nUID:1@shop.example\r\n"
    "DTSTAMP:20261129T120000Z\r\nDTSTART:20261130T120000Z\r\nSUMMARY:Grüße\r\nORGANIZER:mailto:a@rsa.example\r\n"
    "ATTENDEE:mailto:ann@example.com\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)
_CHANGED = re.compile(rb"^(From|To|Subject|Date|MIME-Version|Content-Type|Message-ID): ?", re.MULTILINE | re.IGNORECASE)


@dataclass
class Verified:
    """Counts of messages; ``dkimpy`` and ``opendkim`` those whose every signature it found valid."""

    messages: int = 0
    dkimpy: int = 0
    with_rsa: int = 0
    opendkim: int = 0
    changed: int = 0
    changed_but_valid: int = 0


def shapes(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the arguments of ``count`` messages, the same ones for the same seed."""
    chosen = random.Random(seed)
    for number in range(count):
        shape: dict[str, Any] = {
            "recipients": chosen.sample(_PEOPLE, chosen.randint(1, 3)),
            "subject": f"{number} {chosen.choice(_SUBJECTS)}",
            "text": chosen.choice(_TEXTS),
            "sender": f"Shop ü <a@{list(KEYS)[number % len(KEYS)]}>",
        }
        if chosen.random() < 0.5:
            shape["html"] = f"<p>Grüße</p>{'<p>é und mehr</p>' * chosen.randint(0, 200)}<img src='cid:logo.png'>"
            shape["attachments"] = [("logo.png", chosen.randbytes(500))]
        if chosen.random() < 0.4:
            files = [("ä 日本.bin", chosen.randbytes(chosen.randint(0, 90_000))), ("a.txt", "é\r\n".encode("latin-1"))]
            shape["attachments"] = [*shape.get("attachments", ()), *files[: chosen.randint(1, 2)]]
        if chosen.random() < 0.2:
            shape["calendar"] = _CALENDAR
        if chosen.random() < 0.5:
            unsubscribe = {
                "List-Unsubscribe": "<https://shop.example/u>",
                "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            }
            shape["headers"] = chosen.choice([unsubscribe, {"X-Long": "word  and " * chosen.randint(1, 90)}])
        if chosen.random() < 0.3:
            shape["cc"] = ["Bücher <books@example.com>"]
            shape["reply_to"] = "Help é <help@shop.example>"
        yield shape


async def verify_through(server: Postfix | Exim, count: int, seed: int, folder: Path) -> Verified:
    """Send ``count`` messages through ``server``; verify each as it arrived, and after a change of body or header."""
    settings = server.settings(dkim=KEYS, default_sender="a@rsa.example", retries=0)
    mailer = Mailer(EmailSettings.load(settings))
    data = list(shapes(count, seed))
    try:
        with using_mailer(mailer):
            receipts = [receipt async for receipt in send_many(data)]
    finally:
        await mailer.aclose()
    assert all(receipts), [receipt for receipt in receipts if not receipt]
    deliveries = sum(len(shape["recipients"]) + len(shape.get("cc", ())) for shape in data)
    stored = await asyncio.to_thread(server.take, deliveries)
    arrived = [message.content.replace(b"\n", b"\r\n") for message in stored]
    assert len({re.search(rb"^Message-ID: *(\S+)", each, re.MULTILINE | re.IGNORECASE)[1] for each in arrived}) == count  # type: ignore[index]
    return await asyncio.to_thread(_verify, arrived, random.Random(seed), folder)


def _verify(arrived: list[bytes], chosen: random.Random, folder: Path) -> Verified:
    found = Verified(messages=len(arrived))
    changed = [change(content, body=bool(number % 2), chosen=chosen) for number, content in enumerate(arrived)]
    for content, after in zip(arrived, changed, strict=True):
        domain = _signing_domain(content)
        assert content.count(b"DKIM-Signature:") == len(KEYS[domain])
        found.dkimpy += all(is_valid(content, domain, KEYS[domain]))
        found.changed += 1
        found.changed_but_valid += any(is_valid(after, domain, KEYS[domain]))
    with_rsa = [number for number, content in enumerate(arrived) if _signing_domain(content) != "ed.example"]
    published = {name: text for domain, keys in KEYS.items() for name, text in records(domain, keys).items()}
    found.with_rsa = len(with_rsa)
    found.opendkim = sum(verified_by_opendkim([arrived[number] for number in with_rsa], published, folder))
    found.changed_but_valid += sum(verified_by_opendkim([changed[number] for number in with_rsa], published, folder))
    return found


def change(content: bytes, *, body: bool, chosen: random.Random) -> bytes:
    """Return the message with one byte more: in its body, or in a header field that is signed."""
    end = content.index(b"\r\n\r\n") + 4
    if body:
        place = chosen.randint(end, len(content.rstrip(b"\r\n"))) if len(content.rstrip(b"\r\n")) > end else end
        return content[:place] + b"x" + content[place:]
    header = content[: end - 2]
    place = chosen.choice([match.end() for match in _CHANGED.finditer(header)])
    return content[:place] + b"x" + content[place:]


def _signing_domain(content: bytes) -> str:
    match = re.search(rb" d=([\w.]+);", content)
    assert match is not None
    return match[1].decode()
