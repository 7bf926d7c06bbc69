"""Messages that were written to attack the one who reads them."""

import re
from email.message import Message
from pathlib import Path

import pytest
from support.inbox import Inboxes, directives

from openviper.conf import override
from openviper.core.email import AttachmentData, inbox

MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


async def test_pages_allow_no_foreign_script_style_or_frame(inboxes: Inboxes) -> None:
    async with inboxes.with_message(html="<p>Hello") as (client, path):
        for address in ("/_mail/", path, f"{path}?view=source", f"{path}?view=text"):
            answer = await client.get(address)
            policy = directives(answer.headers)
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == "'self'"
            assert policy["style-src"] == "'self'"
            assert policy["frame-ancestors"] == "'none'"
            assert policy["base-uri"] == "'none'"
            assert policy["form-action"] == "'self'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-opener-policy"] == "same-origin"


async def test_the_html_part_is_framed_without_scripts_or_remote_content(inboxes: Inboxes) -> None:
    async with inboxes.with_message(html="<p>Hello") as (client, path):
        page = (await client.get(path)).text
        assert ' sandbox="allow-same-origin allow-popups allow-popups-to-escape-sandbox"' in page
        answer = await client.get(f"{path}/html")
        policy = directives(answer.headers)
        assert policy["default-src"] == "'none'"
        assert "script-src" not in policy
        assert "http:" not in policy["img-src"].split()
        assert policy["sandbox"] == "allow-same-origin allow-popups allow-popups-to-escape-sandbox"
        assert policy["frame-ancestors"] == "'self'"
        assert policy["form-action"] == "'none'"


@pytest.mark.parametrize("query", ["", "?theme=dark", "?theme=inverted&width=phone", "?remote=1"])
async def test_a_frame_of_the_pages_own_origin_never_allows_scripts(
    inboxes: Inboxes, tmp_path: Path, query: str
) -> None:
    """Together the two would let a message take the frame's sandbox off, and act as the page."""
    (tmp_path / "emails").mkdir()
    (tmp_path / "emails/hello.html").write_text("<p>Hello")
    with override(TEMPLATES_DIR=tmp_path):
        async with inboxes.with_message(html="<p>Hello <img src='https://cdn.example/x.png'>") as (client, path):
            for page, document in (
                (path, f"{path}/html"),
                ("/_mail/templates/emails/hello", "/_mail/template-html/emails/hello"),
            ):
                sandboxes = re.findall(r"<iframe [^>]*>", (await client.get(page + query)).text)
                policy = directives((await client.get(document + query)).headers)
                given = [re.search(r' sandbox="([^"]*)"', sandboxes[0]), re.match("(.*)", policy["sandbox"])]
                for tokens in [match[1].split() for match in given if match]:
                    assert "allow-same-origin" in tokens
                    assert not {"allow-scripts", "allow-forms", "allow-top-navigation"} & set(tokens)
                assert len(sandboxes) == 1
                assert policy["default-src"] == "'none'"
                assert not {"script-src", "script-src-elem"} & set(policy)


def test_the_pages_load_nothing_from_elsewhere_and_their_script_is_short() -> None:
    pages = {path.name: path.read_text() for path in (Path(inbox.__file__).parent / "pages").iterdir()}
    elsewhere = {
        name: found
        for name, text in pages.items()
        if (found := re.findall(r"(?:src|href)=\"(?:https?:)?//|url\(|@import|import\(", text))
    }
    assert elsewhere == {}
    assert [name for name in pages if name.endswith(".js")] == ["inbox.js"]
    assert len(pages["inbox.js"].splitlines()) < 600


async def test_markup_in_every_field_is_shown_as_text(inboxes: Inboxes) -> None:
    message = {
        "subject": MARKUP,
        "text": MARKUP,
        "html": f"<p>{MARKUP}",
        "recipients": '"<script>alert(3)</script>" <a@example.test>',
        "cc": '"<img src=y>" <c@example.test>',
        "bcc": '"<img src=z>" <b@example.test>',
        "reply_to": '"<img src=r>" <r@example.test>',
        "attachments": [("<script>alert(4)</script>.txt", b"x", "text/plain")],
        "headers": {"X-Campaign": "<script>alert(5)</script>"},
    }
    async with inboxes.with_message(**message) as (client, path):
        for address in ("/_mail/", "/_mail/?q=<script>alert(6)</script>", path):
            for view in ("", "text", "html", "markup", "headers", "source", "check", "<script>"):
                joint = "&" if "?" in address else "?"
                page = (await client.get(f"{address}{joint}view={view}")).text
                assert "<script>alert" not in page
                assert "<img" not in page


FILE_NAMES = {
    'quote".html': ('quote".html', "quote_.html"),
    "Rechnung für Ana.pdf": ("Rechnung für Ana.pdf", "Rechnung f_r Ana.pdf"),
    "請求書.pdf": ("請求書.pdf", "___.pdf"),
    "a;filename=evil.exe": ("a;filename=evil.exe", "a_filename_evil.exe"),
    "100%41.txt": ("100%41.txt", "100_41.txt"),
    "back\\slash.txt": ("back\\slash.txt", "back_slash.txt"),
    "<b>.html": ("<b>.html", "_b_.html"),
    "'; DROP.txt": ("'; DROP.txt", "__ DROP.txt"),
}


@pytest.mark.parametrize("name", FILE_NAMES)
async def test_a_download_keeps_its_name_and_no_header_is_injected(inboxes: Inboxes, name: str) -> None:
    """RFC 6266: a plain name for old clients, the exact one by RFC 8187."""
    async with inboxes.with_message(attachments=[AttachmentData(name, b"<script>", "text/html")]) as (client, path):
        answer = await client.get(f"{path}/attachments/0")
    exact, plain = FILE_NAMES[name]
    header = answer.headers["content-disposition"]
    assert header.startswith(f"attachment; filename=\"{plain}\"; filename*=UTF-8''")
    parsed = Message()
    parsed["Content-Disposition"] = f"attachment; {header.split('; ')[-1]}"
    assert parsed.get_filename() == exact
    assert answer.content == b"<script>"


async def test_a_file_name_that_is_read_backwards_is_shown_as_it_is(inboxes: Inboxes) -> None:
    async with inboxes.with_message(attachments=[("a\u202efdp.exe", b"x")]) as (client, path):
        page = (await client.get(path)).text
    assert r">a\u202efdp.exe</a>" in page


async def test_an_attachment_is_never_shown_by_the_browser(inboxes: Inboxes) -> None:
    page = AttachmentData("page.html", b"<script>alert(1)</script>", "text/html")
    async with inboxes.with_message(attachments=[page]) as (client, path):
        answer = await client.get(f"{path}/attachments/0")
        source = await client.get(f"{path}/source")
        eml = await client.get(f"{path}/message.eml")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert source.headers["content-type"] == "text/plain; charset=utf-8"
    assert eml.headers["content-disposition"].startswith("attachment;")
    assert eml.headers["content-type"] == "message/rfc822"
