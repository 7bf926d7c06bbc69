"""Attachments on the page: images, text and PDF are shown, and nothing of them becomes a page of this origin."""

import pytest
from support.inbox import Inboxes, directives

from openviper.core.email import AttachmentData

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
PDF = b"%PDF-1.7\n"
TEXT = b"order;total\n7;<script>alert(1)</script>\xff\n\xe2\x80\xae"


def part(name: str, content: bytes, mimetype: str) -> AttachmentData:
    return AttachmentData(name, content, mimetype)


@pytest.mark.parametrize("destination", [None, "image", "document", "iframe", "embed", "object"])
async def test_an_svg_image_is_an_image_or_a_download(inboxes: Inboxes, destination: str | None) -> None:
    headers = {} if destination is None else {"Sec-Fetch-Dest": destination}
    logo = AttachmentData("logo.svg", SVG, "image/svg+xml", inline=True, content_id="logo")
    async with inboxes.with_message(html='<img src="cid:logo" alt="">', attachments=[logo]) as (client, path):
        page = (await client.get(path)).text
        for address in (f"{path}/attachments/0/image", f"{path}/inline/logo"):
            answer = await client.get(address, headers=headers)
            assert "sandbox" in directives(answer.headers) or destination not in (None, "image")
            assert answer.headers["x-content-type-options"] == "nosniff"
            if destination in (None, "image"):
                assert answer.headers["content-type"] == "image/svg+xml"
            else:
                assert answer.headers["content-type"] == "application/octet-stream"
                assert answer.headers["content-disposition"].startswith("attachment;")
    assert f'<img src="{path}/attachments/0/image" alt="logo.svg" loading="lazy">' in page


@pytest.mark.parametrize(
    "mimetype", ["text/csv", "text/html", "application/json", "image/svg+xml+xml", "application/ld+json"]
)
async def test_text_is_shown_escaped(inboxes: Inboxes, mimetype: str) -> None:
    async with inboxes.with_message(attachments=[part("<b>.csv", TEXT, mimetype)]) as (client, path):
        page = (await client.get(path)).text
        answer = await client.get(f"{path}/attachments/0/text")
    if mimetype.startswith("image/"):
        assert answer.status_code == 404
        return
    assert f'href="{path}/attachments/0/text"' in page
    assert "order;total\n7;&lt;script&gt;alert(1)&lt;/script&gt;\ufffd\n\\u202e" in answer.text
    assert "<script>alert" not in answer.text
    assert "<b>" not in answer.text
    assert directives(answer.headers)["script-src"] == "'self'"


async def test_of_a_long_text_the_beginning_is_shown(inboxes: Inboxes) -> None:
    async with inboxes.with_message(attachments=[part("long.log", b"x" * 200_001, "text/plain")]) as (client, path):
        page = (await client.get(f"{path}/attachments/0/text")).text
    assert "only the beginning is shown here" in page
    assert page.count("x" * 200_000) == 1


async def test_a_pdf_opens_in_a_tab_of_its_own(inboxes: Inboxes) -> None:
    files = [part("Rechnung ü.pdf", PDF, "application/pdf"), part("page.pdf", b"<script>", "application/pdf")]
    async with inboxes.with_message(attachments=files) as (client, path):
        page = (await client.get(path)).text
        real = await client.get(f"{path}/attachments/0/pdf")
        fake = await client.get(f"{path}/attachments/1/pdf")
    assert f'href="{path}/attachments/0/pdf" target="_blank" rel="noopener"' in page
    assert real.headers["content-type"] == "application/pdf"
    assert real.headers["content-disposition"].startswith("inline; filename=")
    policy = directives(real.headers)
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    assert fake.headers["content-type"] == "application/octet-stream"
    assert fake.headers["content-disposition"].startswith("attachment;")


@pytest.mark.parametrize("kind", ["image", "text", "pdf"])
async def test_other_files_are_downloads_only(inboxes: Inboxes, kind: str) -> None:
    files = [part("x.bin", b"\0", "application/octet-stream")]
    async with inboxes.with_message(attachments=files) as (client, path):
        page = (await client.get(path)).text
        assert (await client.get(f"{path}/attachments/0/{kind}")).status_code == 404
        assert (await client.get(f"{path}/attachments/7/{kind}")).status_code == 404
    assert f"attachments/0/{kind}" not in page


async def test_a_calendar_is_shown_as_text(inboxes: Inboxes) -> None:
    lines = ("BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:x", "METHOD:PUBLISH", "BEGIN:VEVENT", "UID:7")
    ends = ("DTSTAMP:20300101T000000Z", "DTSTART:20300101T000000Z", "SUMMARY:<b>Fair", "END:VEVENT", "END:VCALENDAR")
    async with inboxes.with_message(calendar="\r\n".join((*lines, *ends, ""))) as (client, path):
        page = (await client.get(path)).text
        shown = (await client.get(f"{path}/calendar/text")).text
    assert f'href="{path}/calendar/text"' in page
    assert "SUMMARY:&lt;b&gt;Fair\n" in shown
    assert f'href="{path}/calendar" download' in shown
    async with inboxes.with_message() as (client, path):
        assert (await client.get(f"{path}/calendar/text")).status_code == 404
