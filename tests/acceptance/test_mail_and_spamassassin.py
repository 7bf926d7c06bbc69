"""What SpamAssassin's local rules say about the shop's mail, and about mail of every structure."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.shopping import Shop
from support.spamassassin import judge

from openviper.conf import override
from openviper.core.email import AttachmentData, send_email
from openviper.core.email.backends.memory import sent

LOGO = AttachmentData("logo.png", b"\x89PNG\r\n\x1a\n" * 20, "image/png", inline=True, content_id="logo")
PROSE = "Dear Ann,\n\nthank you for your order. It will leave our house tomorrow.\n\nYours,\nthe shop\n"
PAGE = f'<html><body><p>{PROSE}</p><p><img src="cid:logo" alt="Shop"></p></body></html>'


def delivered() -> list[bytes]:
    return [b"".join(message.content) for message in sent]


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    sent.clear()
    yield
    sent.clear()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("OPENVIPER_SETTINGS_MODULE", "example_shop.shop.settings")
    with override(DATABASE_URL=f"sqlite:///{tmp_path / 'shop.sqlite3'}", SHOP_URL="https://shop.example"):
        yield Shop()


async def test_no_header_of_the_shops_mail_is_missing_or_malformed(shop: Shop) -> None:
    """The confirmation and the shipping notice, for customers of whom each has another name."""
    names = ["Ana Costa", "Zoë Müller-Ångström", "山田太郎", "Ольга", "😀", "=?utf-8?q?x?= <b>", "x" * 80]
    async with shop.visited() as visitor:
        for number, name in enumerate(names, 1):
            await visitor.add("Field notebook")
            assert (await visitor.check_out(name=name)).status_code == 303
            assert (await visitor.post(f"/staff/orders/{number}/ship")).status_code == 303
    messages = delivered()
    assert len(messages) == 2 * len(names)
    for verdict in await asyncio.to_thread(judge, messages):
        print(f"{verdict.score:+.1f} {sorted(verdict.rules)}")
        assert not verdict.malformed, verdict
        assert verdict.score < 1, verdict


STRUCTURES: dict[str, dict[str, Any]] = {
    "text": {"text": PROSE},
    "html": {"html": PAGE},
    "inline": {"text": PROSE, "html": PAGE, "attachments": [LOGO]},
    "files": {"text": PROSE, "html": PAGE, "attachments": [LOGO, ("grüße.pdf", b"%PDF-1.4", "application/pdf")]},
    "blind": {"text": PROSE, "recipients": [], "bcc": ["blind@example.com"]},
    "long subject": {
        "text": PROSE,
        "subject": "Grüße aus München: Ihre Bestellung ist unterwegs, und zwar schon seit heute",
    },
    "many": {
        "text": PROSE,
        "recipients": [f"Customer {n} <c{n}@example.com>" for n in range(20)],
        "cc": "Zoë <z@example.com>",
    },
    "japanese": {"text": "ご注文ありがとうございます。\n" * 5, "subject": "ご注文の確認"},
}


async def test_no_header_of_any_structure_is_missing_or_malformed() -> None:
    with override(EMAIL={"backend": "MemoryBackend", "default_sender": "Viper Supplies <orders@shop.example>"}):
        for values in STRUCTURES.values():
            await send_email(**{"recipients": "Ann Lee <ann@example.com>", "subject": "Your order 1001", **values})
    verdicts = await asyncio.to_thread(judge, delivered())
    for name, verdict in zip(STRUCTURES, verdicts, strict=True):
        assert not verdict.malformed, (name, verdict)
        assert verdict.score < verdict.required, (name, verdict)


BROKEN = [
    (b"Date: ", b"X-Date: ", "MISSING_DATE"),
    (b"Date: ", b"Date: yesterday, ", "INVALID_DATE"),
    (b"Message-ID: ", b"X-ID: ", "MISSING_MID"),
    (b"From: ", b"X-From: ", "MISSING_FROM"),
    (b"To: ", b"X-To: ", "MISSING_HEADERS"),
    (b"MIME-Version: ", b"X-Version: ", "MIME_HEADER_CTYPE_ONLY"),
    (b"Subject: ", b"Subject: =?utf-8?q?a b?= ", "BAD_ENC_HEADER"),
]


async def test_a_broken_header_is_found() -> None:
    """Otherwise the tests above would show nothing."""
    with override(EMAIL={"backend": "MemoryBackend", "default_sender": "orders@shop.example"}):
        await send_email("ann@example.com", "Your order 1001", PROSE, f"<p>{PROSE}</p>")
    (content,) = delivered()
    verdicts = await asyncio.to_thread(judge, [content.replace(old, new, 1) for old, new, _ in BROKEN])
    for (_, _, rule), verdict in zip(BROKEN, verdicts, strict=True):
        assert [one.malformed for one in verdicts if rule in one.malformed] == [verdict.malformed], rule
