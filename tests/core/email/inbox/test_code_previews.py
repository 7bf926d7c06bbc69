"""Previews in code: functions that return the arguments of a send, shown as they would be sent."""

import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.inbox import SAME_ORIGIN, Inboxes

from openviper.conf import override
from openviper.core.email import Cancel, EmailSettings, preview
from openviper.core.email.backends.memory import sent
from openviper.core.email.delivery import Mailer
from openviper.core.email.inbox.lint import lint_previews
from openviper.core.email.sending.previews import load_previews
from openviper.db import dispose
from openviper.exceptions import ImproperlyConfigured

MODULE = '''
from openviper.core.email import preview, send_email

PIXEL = b"\\x89PNG\\r\\n\\x1a\\n"

@preview(variants={"long name": {"name": "Maximiliane"}, "nobody": {"name": ""}})
def welcome(name: str = "Ana", pieces: int = 2, price: float = 1.5, vip: bool = False, language: object = None):
    """Greet a new customer.

    More about it.
    """
    return {
        "recipients": "Ana <ana@example.test>",
        "bcc": "team@example.test",
        "subject": f"Welcome {name}",
        "html": f'<p>{name}: {pieces}, {price}, {vip}</p><img src="cid:logo">',
        "attachments": [
            ("terms.txt", b"The terms", "text/plain"),
            {"filename": "logo.png", "content": PIXEL, "mimetype": "image/png", "inline": True, "content_id": "logo"},
        ],
        "key": "welcome-7",
        "delay": 60,
    }

@preview
async def sends():
    await send_email("ana@example.test", "Sent", text="never")
    return {"recipients": "ana@example.test", "subject": "Asked for", "template": "emails/hello.txt"}

@preview
def fails():
    return {}["nothing"]

@preview
def misspells():
    return {"recipients": "ana@example.test", "subjct": "x"}

@preview
def returns_text():
    return "x"

def no_preview():
    """Not listed."""
'''


@pytest.fixture
def mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with previews, and a folder with the template that one of them uses."""
    (tmp_path / "sample_mails.py").write_text(MODULE)
    (tmp_path / "templates" / "emails").mkdir(parents=True)
    (tmp_path / "templates" / "emails" / "hello.txt").write_text("Hello")
    monkeypatch.syspath_prepend(tmp_path)
    with override(TEMPLATES_DIR=tmp_path / "templates"):
        yield "sample_mails"
    sys.modules.pop("sample_mails", None)


@asynccontextmanager
async def opened(mails: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    sent.clear()
    with override(DEBUG=True):
        async with Inboxes().open(mails=[mails], **settings) as client:
            yield client


async def test_previews_are_listed_with_their_variants_beside_those_without_code(mails: str) -> None:
    async with opened(mails) as client:
        page = (await client.get("/_mail/templates")).text
    names = re.findall(r'href="/_mail/(?:previews|templates)/([^"]+)"', page)
    assert names == [f"{mails}.{name}" for name in ("welcome", "sends", "fails", "misspells", "returns_text")] + [
        "emails/hello"
    ]
    assert "Greet a new customer." in page
    assert "More about it" not in page
    assert "long name" in page


async def test_a_preview_is_shown_as_it_would_be_sent(mails: str) -> None:
    async with opened(mails) as client:
        page = (await client.get(f"/_mail/previews/{mails}.welcome")).text
        frame = (await client.get(f"/_mail/preview-html/{mails}.welcome")).text
        text = (await client.get(f"/_mail/previews/{mails}.welcome?view=text")).text
        terms = await client.get(f"/_mail/preview-attachment/{mails}.welcome/0")
        missing = await client.get(f"/_mail/preview-attachment/{mails}.welcome/2")
    assert "<h1>Welcome Ana</h1>" in page
    for words in ("Shop &lt;shop@example.test&gt;", "team@example.test", "terms.txt", "logo.png"):
        assert words in page.replace("&#34;", ""), words
    assert "Ana: 2, 1.5, False" in frame
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in frame
    assert "Ana: 2, 1.5, False" in text
    assert terms.content == b"The terms"
    assert terms.headers["content-disposition"].startswith("attachment")
    assert missing.status_code == 404
    assert list(sent) == []


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("variant=long+name", "Maximiliane: 2, 1.5, False"),
        ("variant=nobody", ": 2, 1.5, False"),
        ("value-name=Bob&value-pieces=7&value-price=0.25&value-vip=true", "Bob: 7, 0.25, True"),
        ("variant=long+name&value-pieces=3", "Maximiliane: 3, 1.5, False"),
        ("value-language=de&value-other=x", "Ana: 2, 1.5, False"),
    ],
)
async def test_a_variant_or_edited_values_change_the_message(mails: str, query: str, shown: str) -> None:
    async with opened(mails) as client:
        page = (await client.get(f"/_mail/previews/{mails}.welcome?{query}")).text
        source = re.search(r'<iframe [^>]*src="([^"]+)"', page)
        assert source is not None
        frame = (await client.get(source[1].replace("&amp;", "&"))).text
    assert f"<p>{shown}</p>" in frame


async def test_values_of_the_wrong_type_are_named_and_the_others_stay(mails: str) -> None:
    async with opened(mails) as client:
        query = "value-pieces=x&value-price=&value-name=Bob"
        page = (await client.get(f"/_mail/previews/{mails}.welcome?{query}")).text
    assert ">pieces: must be a number, not &#39;x&#39;; price: must be a number, not &#39;&#39;<" in page
    assert 'name="value-name" value="Bob"' in page


async def test_a_message_of_html_alone_shows_the_text_that_is_sent_with_it(mails: str) -> None:
    async with opened(mails) as client:
        page = (await client.get(f"/_mail/previews/{mails}.welcome?view=text")).text
    assert re.search(r'aria-current="page">Text</a>', page)
    assert "Ana: 2, 1.5, False</pre>" in page


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", r"&#39;nothing&#39; \(KeyError at .*sample_mails.py:\d+\)"),
        ("misspells", r"has no argument &#39;subjct&#39;; did you mean &#39;subject&#39;\?"),
        ("returns_text", r"must return the arguments of send_email\(\) as a dict, not str"),
    ],
)
async def test_a_preview_that_fails_is_explained(mails: str, name: str, words: str) -> None:
    async with opened(mails) as client:
        page = await client.get(f"/_mail/previews/{mails}.{name}")
    assert page.status_code == 200
    assert re.search(words, page.text)


async def test_mail_that_a_preview_sends_is_discarded(mails: str) -> None:
    async with opened(mails) as client:
        page = (await client.get(f"/_mail/previews/{mails}.sends")).text
    assert "<h1>Asked for</h1>" in page
    assert "emails/hello.txt" in page
    assert list(sent) == []


async def test_what_a_preview_writes_is_rolled_back(tmp_path: Path, mails: str) -> None:
    (tmp_path / "sample_mails.py").write_text(
        "from sqlalchemy import text\n"
        "from openviper.core.email import preview\n"
        "from openviper.db import transaction\n"
        "@preview\n"
        "async def counts():\n"
        "    async with transaction() as session:\n"
        "        await session.execute(text('CREATE TABLE IF NOT EXISTS t (n INTEGER)'))\n"
        "        await session.execute(text('INSERT INTO t VALUES (1)'))\n"
        "        n = await session.scalar(text('SELECT count(*) FROM t'))\n"
        "    return {'recipients': 'ana@example.test', 'subject': f'Rows: {n}', 'text': ''}\n"
    )
    with override(DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}"):
        async with opened(mails) as client:
            for _ in range(2):
                assert "<h1>Rows: 1</h1>" in (await client.get(f"/_mail/previews/{mails}.counts")).text
        await dispose()


async def test_a_preview_can_be_sent(mails: str) -> None:
    async with opened(mails) as client:
        url = f"/_mail/preview-send/{mails}.welcome?variant=long+name"
        answer = await client.post(url, data={"to": "me@example.test"}, headers=SAME_ORIGIN)
        refused = await client.post(url, data={"to": "me@example.test"}, headers={"Origin": "https://evil.example"})
        wrong = await client.post(url, data={"to": "me"}, headers=SAME_ORIGIN)
    (message,) = sent
    assert (answer.status_code, refused.status_code, wrong.status_code) == (303, 403, 422)
    assert message.envelope.recipients == ("me@example.test",)
    assert message.prepared.subject == "Welcome Maximiliane"
    assert [part.filename for part in message.prepared.attachments] == ["terms.txt", "logo.png"]


@pytest.mark.parametrize("path", ["previews", "preview-html", "preview-send"])
async def test_there_are_none_without_debug(mails: str, path: str) -> None:
    async with Inboxes().open(mails=[mails], inbox="always") as client:
        answer = await client.request(
            "POST" if path == "preview-send" else "GET", f"/_mail/{path}/{mails}.welcome", headers=SAME_ORIGIN
        )
        page = (await client.get("/_mail/templates")).text
    assert answer.status_code == 404
    assert mails not in page
    assert mails not in sys.modules


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_site_calls_no_function(mails: str, site: str) -> None:
    async with opened(mails) as client:
        answer = await client.get(f"/_mail/previews/{mails}.welcome", headers={"Sec-Fetch-Site": site})
        other = await client.get(f"/_mail/previews/{mails}.welcome", headers={"Host": "evil.example"})
    assert (answer.status_code, other.status_code) == (403, 403)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1/0", r"division by zero \(ZeroDivisionError at .*sample_mails.py:1\)"),
        (
            "\nimport missing_library",
            r"No module named &#39;missing_library&#39; \(ModuleNotFoundError at .*sample_mails.py:2\)",
        ),
        ("x = 1\n\ndef broken(:\n", r"\(SyntaxError at .*sample_mails.py:3\)"),
        (
            "from openviper.core.email import preview\n@preview\ndef one(name): pass",
            "preview sample_mails.one: parameter &#39;name&#39; needs a default",
        ),
        (
            "from openviper.core.email import preview\n@preview(variants={'a': {'nam': 1}})\ndef one(name=''): pass",
            "variant &#39;a&#39; has &#39;nam&#39;; did you mean &#39;name&#39;",
        ),
        *(
            (
                f"from openviper.core.email import preview\n@preview(variants={variants})\ndef one(name=''): pass",
                "preview sample_mails.one: variants must be dicts of values by name, such as",
            )
            for variants in ("['a']", "{'a': 1}", "{'a'}")
        ),
    ],
)
async def test_a_module_with_a_fault_is_named_on_the_page(tmp_path: Path, mails: str, source: str, words: str) -> None:
    (tmp_path / "sample_mails.py").write_text(source)
    async with opened(mails) as client:
        page = await client.get("/_mail/templates")
    assert page.status_code == 200
    assert re.search(words, page.text), page.text


async def test_a_module_with_a_fault_does_not_hide_the_previews_of_others(tmp_path: Path, mails: str) -> None:
    (tmp_path / "broken_mails.py").write_text("1/0")
    async with opened(mails) as alone:
        names = re.findall(r"/previews/([^\"]+)", (await alone.get("/_mail/templates")).text)
    with override(DEBUG=True):
        async with Inboxes().open(mails=["broken_mails", mails, "absent_mails"]) as client:
            page = (await client.get("/_mail/templates")).text
            welcome = await client.get(f"/_mail/previews/{mails}.welcome")
            broken = await client.get("/_mail/previews/broken_mails.hello")
    assert re.findall(r"/previews/([^\"]+)", page) == names
    assert len(names) == 5
    for shown in (page, broken.text):
        assert "division by zero" in shown
        assert "there is no module &#39;absent_mails&#39;" in shown
    assert "<h1>Welcome Ana</h1>" in welcome.text
    assert broken.status_code == 200


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["mails"\]: there is no module .no_such_module.; correct'):
        load_previews(["no_such_module"])


def test_a_marked_function_stays_itself() -> None:
    def welcome() -> dict[str, Any]:
        return {"subject": "x"}

    assert preview(welcome) is welcome
    assert preview(variants={})(welcome) is welcome


@pytest.mark.parametrize("marked", ["long name", dict, 1])
def test_only_functions_are_marked(marked: Any) -> None:
    with pytest.raises(TypeError, match=r"^preview: must mark a function, not "):
        preview(marked)


async def test_what_before_send_would_cancel_is_shown_with_its_reason(mails: str) -> None:
    email = {"backend": "MemoryBackend", "default_sender": "a@example.test", "before_send": lambda _: Cancel("a test")}
    with override(EMAIL=email):
        async with opened(mails) as client:
            page = (await client.get(f"/_mail/previews/{mails}.welcome")).text
    assert "before_send would cancel it: a test" in page


async def test_lint_checks_each_variant(mails: str) -> None:
    with override(EMAIL={"backend": "NullBackend", "default_sender": "a@example.test", "mails": [mails]}):
        reports = await lint_previews(Mailer(EmailSettings.from_settings()))
    found = {
        name.removeprefix(f"{mails}."): [each.check for each in report.findings] for name, report in reports.items()
    }
    assert list(found)[:4] == ["welcome", "welcome (long name)", "welcome (nobody)", "sends"]
    assert "image-without-alt" in found["welcome (nobody)"]
    assert found["sends"] == []
    assert found["fails"] == found["misspells"] == found["returns_text"] == ["preview-error"]


async def test_lint_names_the_preview_that_is_meant(mails: str, tmp_path: Path) -> None:
    """A template whose file is named like a module is no preview."""
    (tmp_path / f"{mails}.html").write_text("<p>Hello</p>")
    settings = {"backend": "NullBackend", "default_sender": "a@example.test", "mails": [mails]}
    with override(EMAIL=settings, TEMPLATES_DIR=tmp_path):
        names = [f"{mails}.welcom", f"{mails}.welcome (long name)", f"{mails}.html"]
        reports = await lint_previews(Mailer(EmailSettings.from_settings()), names)
    texts = {name: report.findings[0].explanation for name, report in reports.items()}
    meant = f"; did you mean '{mails}.welcome'?"
    assert texts == {name: f"there is no preview '{name}'{meant}" for name in names[:2]}
