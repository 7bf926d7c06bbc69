"""Previews of templates: sample values, what is missing, sending one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from markupsafe import escape
from support.inbox import SAME_ORIGIN, Inboxes, directives

from openviper.conf import override
from openviper.core.email.backends.memory import sent
from openviper.core.email.inbox.samples import build_context, make_example
from openviper.core.email.inbox.template_usage import read_variable_uses


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """Files of a project whose templates are not all for mail."""
    files = {
        "home.html": "<p>{{ products }}",
        "emails/_footer.txt": "{{ shop }}",
        "emails/welcome.txt": "{% block subject %}Welcome, {{ user.name }}{% endblock %}Hello {{ user.name }}\n",
        "emails/welcome.html": "<h1>Hello {{ user.name }}</h1>{% for one in items %}<p>{{ one.title }}</p>{% endfor %}",
        "emails/notes.md": "# Release {{ version }}\n",
        "emails/broken.txt": "{% if %}",
        "emails/v1.2.txt": "dotted",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def values(source: str, given: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """The sample values for a template, and what it writes with them."""
    environment = Environment(autoescape=False)
    uses = read_variable_uses([environment.parse(source)], environment.globals)
    context, _ = build_context(uses, given or {})
    return context, environment.from_string(source).render(context)


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ name }}", "Ana Costa"),
        ("{{ user.email }}", "ana@example.com"),
        ("{{ order['url'] }}", "https://example.com/sample"),
        ("{% for line in order.lines %}{{ line.name }};{% endfor %}", "Sample line;Sample line;"),
        ("{% for line in order.items %}{{ line.quantity * line.price }};{% endfor %}", "84;84;"),
        ("{% for row in address.splitlines() %}[{{ row }}]{% endfor %}", "[Rua Augusta 12, Lisboa]"),
        ("{{ created.strftime('%Y') }}", "2026"),
        ("{{ '%.2f'|format(total) }}", "42.00"),
        ("{{ price|round(1) }}", "42"),
        ("{% if status == 'paid' %}yes{% endif %}", "yes"),
        ("{% if amount > 10 %}yes{% endif %}", "yes"),
        ("{% for key, value in extras.items() %}{{ key }}={{ value }};{% endfor %}", "first=Sample;second=Sample;"),
        ("{{ tags|join(', ') }}", "Sample tag, Sample tag"),
        ("{{ orders|length }}", "2"),
        ("{{ (orders|first).number }}", "1042"),
        ("{{ orders[0].number }}", "1042"),
        ("{{ url_of(user.id) }}", "Sample url of"),
        ("{% set total = a + b %}{{ total }}", "84"),
        ("{% with who = user %}{{ who.name }}{% endwith %}", "Ana Costa"),
        ("{% macro hi(x) %}{{ x }}{{ shop }}{% endmacro %}{{ hi(1) }}", "1Sample shop"),
        ("{{ range(3)|list }}{{ lipsum is defined }}", "[0, 1, 2]True"),
        ("{{ user }}{{ user.name }}", "Ana CostaAna Costa"),
        ("{{ is_new }}", "True"),
        ("{% for a in rows %}{% for b in a.cells %}{{ b }}{% endfor %}{% endfor %}", "Sample cell" * 4),
        ("{{ a.b.c.d.e }}", "Sample e"),
        ("{{ code.upper() }}", "493817"),
    ],
)
def test_made_up_values_fit_what_a_template_does_with_them(source: str, written: str) -> None:
    assert values(source)[1] == written


def test_the_sample_file_beats_what_is_made_up() -> None:
    source = "{{ user.name }} {{ user.email }}{% for x in items %} {{ x.n }}{% endfor %}"
    given = {"user": {"name": "Bob"}, "items": [{"n": 1}, {"n": 2}, {"n": 3}], "more": {"items": 7}}
    context, written = values(source, given)
    assert written == "Bob ana@example.com 1 2 3"
    assert context["more"].items == 7


def test_an_example_of_a_sample_file_gives_every_variable() -> None:
    environment = Environment(autoescape=False)
    source = "{{ user.name }}{% for line in order.lines %}{{ line.price * 2 }}{% endfor %}{{ at.strftime('%Y') }}"
    uses = read_variable_uses([environment.parse(source)])
    written = json.loads(json.dumps(make_example(uses, {})))
    assert written["order"] == {"lines": [{"price": 42}]}
    _, variables = build_context(uses, written)
    assert all(variable.given for variable in variables)


async def test_every_template_is_listed_those_of_mail_first(inboxes: Inboxes, templates: Path) -> None:
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get("/_mail/templates")).text
    mail, _, others = page.partition("<details")
    for name in ("emails/welcome", "emails/notes", "emails/broken", "emails/v1.2.txt"):
        assert f'href="/_mail/templates/{name}"' in mail
    assert 'href="/_mail/templates/home"' in others
    assert 'href="/_mail/templates/emails/_footer"' in others


async def test_a_preview_has_subject_html_and_text(inboxes: Inboxes, templates: Path) -> None:
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get("/_mail/templates/emails/welcome")).text
            text = (await client.get("/_mail/templates/emails/welcome?view=text")).text
            html = await client.get("/_mail/template-html/emails/welcome")
    assert "<dt>Subject</dt><dd>Welcome, Ana Costa</dd>" in page
    assert 'src="/_mail/template-html/emails/welcome?' in page
    assert ">Hello Ana Costa</pre>" in text
    assert "<h1>Hello Ana Costa</h1><p>Sample title</p><p>Sample title</p>" in html.text
    assert "sandbox" in directives(html.headers)


@pytest.mark.parametrize("file", ["welcome.sample.json", "welcome.html.sample.json"])
async def test_a_sample_file_is_taken_and_its_gaps_are_reported(inboxes: Inboxes, templates: Path, file: str) -> None:
    name = f"emails/{file.removesuffix('.sample.json')}"
    (templates / "emails" / file).write_text('{"user": {"name": "Bob"}, "typo": 1}')
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get(f"/_mail/templates/{name}?view=values")).text
    assert f"from emails/{file}" in page
    assert f"emails/{file} lacks items[].title." in page
    assert "does not use typo." in page
    assert '<code>user.name</code> <span class="state delivered">sample file</span>' in page
    assert '<code>items[].title</code> <span class="state failed">missing</span>' in page


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("emails/broken", "line 1"),
        ("emails/absent", "there is no"),
        ("emails/welcom", "did you mean &#39;emails/welcome&#39;?"),
        ("../secret", ".."),
        ("emails/notes", "is not valid JSON"),
        ("emails/welcome.txt", "must contain an object"),
    ],
)
async def test_what_cannot_be_rendered_is_explained(inboxes: Inboxes, templates: Path, name: str, words: str) -> None:
    (templates / "emails/notes.sample.json").write_text("{")
    (templates / "emails/welcome.sample.json").write_text("[]")
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = await client.get(f"/_mail/templates/{name.replace('..', '%2E%2E')}")
            frame = await client.get(f"/_mail/template-html/{name.replace('..', '%2E%2E')}")
    assert page.status_code == 200
    assert words in page.text.partition('role="alert"')[2]
    assert frame.status_code == 404


@pytest.mark.parametrize("name", ["emails/broken", "emails/broken.txt", "emails/absent", "emails/half", "emails/child"])
async def test_nothing_is_said_of_the_values_of_a_template_that_cannot_be_read(
    inboxes: Inboxes, templates: Path, name: str
) -> None:
    """Neither that it has none nor that a file could choose them."""
    (templates / "emails/half.html").write_text("{{ name }}{% block subject %}")
    (templates / "emails/half.txt").write_text("{{ name }}")
    (templates / "emails/child.html").write_text("{% extends 'emails/broken.txt' %}{{ name }}")
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            for view in ("", "values", "check", "html"):
                page = (await client.get(f"/_mail/templates/{name}?view={view}")).text
                assert 'role="alert"' in page
                for claim in ("uses no variables", "made up", "sample.json", "subject</code> block", ">Values"):
                    assert claim not in page, (view, claim)
                assert "The template cannot be rendered" in page
                assert "<dl" not in page.partition("</main>")[0]


@pytest.mark.parametrize("edit", ['{"user": ', "[1]", "{'user': 1}"])
async def test_a_faulty_edit_is_shown_to_be_mended(inboxes: Inboxes, templates: Path, edit: str) -> None:
    (templates / "emails/welcome.sample.json").write_text('{"user": {"name": "Bob"}}')
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get("/_mail/templates/emails/welcome", params={"values": edit, "view": "values"})).text
            healthy = (await client.get("/_mail/templates/emails/welcome?view=values")).text
    assert f"{escape(edit)}</textarea>" in page
    assert "<code>user.name</code>" in page
    assert "lacks" not in page
    assert "missing" not in page
    assert "emails/welcome.sample.json lacks items[].title." in healthy


async def test_a_faulty_sample_file_is_shown_with_an_example_in_its_place(inboxes: Inboxes, templates: Path) -> None:
    (templates / "emails/welcome.sample.json").write_text("{")
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get("/_mail/templates/emails/welcome?view=values")).text
    assert "emails/welcome.sample.json is not valid JSON" in page
    assert "&#34;title&#34;: " in page.partition("<textarea")[2]


async def test_a_preview_is_checked_for_the_targeted_clients(inboxes: Inboxes, templates: Path) -> None:
    (templates / "emails/bad.html").write_text(
        '<a href="/x">x</a><a href="{{ shop }}/y">y</a><svg></svg>\n<p style="min-width:1px">'
    )
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open(target_clients=["outlook.windows"]) as client:
            page = (await client.get("/_mail/templates/emails/bad?view=check")).text
            broken = (await client.get("/_mail/templates/emails/broken?view=check")).text
        async with inboxes.open(target_clients=["apple-mail"]) as client:
            apple = (await client.get("/_mail/templates/emails/bad?view=check")).text
    problems, _, notes = page.partition("<details")
    assert "1 relative link" in problems
    assert "/x</p>" in problems
    assert "Embedded &lt;svg&gt; image: not supported by Outlook" in problems
    assert '2<span class="unseen"> findings</span>' in problems
    assert "1 note on mail clients" in notes
    assert "min-width property: not supported by Outlook" in notes
    assert "Tested 2021-11-29. HTML line 2." in notes
    assert "The template cannot be rendered" in broken
    assert "Outlook" not in apple


async def test_an_empty_template_is_a_problem(inboxes: Inboxes, templates: Path) -> None:
    (templates / "emails/empty.txt").write_text("{% block subject %}Hello{% endblock %}\n")
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            empty = (await client.get("/_mail/templates/emails/empty?view=check")).text
            dotted = (await client.get("/_mail/templates/emails/v1.2.txt?view=check")).text
    assert "The message is empty" in empty
    assert "The message is empty" not in dotted


async def test_markup_in_a_sample_file_is_shown_as_text(inboxes: Inboxes, templates: Path) -> None:
    (templates / "emails/welcome.sample.json").write_text('{"user": {"name": "<script>x</script>"}, "<b>": 1}')
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            for view in ("html", "text", "values", "check"):
                assert "<script>x" not in (await client.get(f"/_mail/templates/emails/welcome?view={view}")).text
            assert "<script>x" not in (await client.get("/_mail/template-html/emails/welcome")).text


async def test_a_changed_file_is_seen_at_once(inboxes: Inboxes, templates: Path) -> None:
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            assert "Sample version" in (await client.get("/_mail/template-html/emails/notes")).text
            (templates / "emails/notes.md").write_text("# Changed {{ edition }}\n")
            assert "Changed Sample edition" in (await client.get("/_mail/template-html/emails/notes")).text


async def test_a_preview_can_be_sent_while_debug_is_on(inboxes: Inboxes, templates: Path) -> None:
    sent.clear()
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            path = "/_mail/template-send/emails/welcome"
            answer = await client.post(path, data={"to": "me@example.test"}, headers=SAME_ORIGIN)
            message = (await client.get(answer.headers["location"])).text
    (mail,) = sent
    assert (mail.prepared.subject, mail.envelope.recipients) == ("Welcome, Ana Costa", ("me@example.test",))
    assert mail.prepared.html is not None
    assert "Welcome, Ana Costa" in message


@pytest.mark.parametrize("to", ["", "nobody", "a@example.test, b", "a@example.test\r\nBcc: b@example.test"])
async def test_a_wrong_address_is_said_and_nothing_is_sent(inboxes: Inboxes, templates: Path, to: str) -> None:
    sent.clear()
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            path = "/_mail/template-send/emails/welcome"
            answer = await client.post(path, data={"to": to}, headers=SAME_ORIGIN)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert len(sent) == 0


async def test_nothing_is_sent_from_a_preview_without_debug_or_by_another_site(
    inboxes: Inboxes, templates: Path
) -> None:
    sent.clear()
    path = "/_mail/template-send/emails/welcome"
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            foreign = {"Sec-Fetch-Site": "cross-site"}
            assert (await client.post(path, data={"to": "a@example.test"}, headers=foreign)).status_code == 403
        with override(DEBUG=False):
            async with inboxes.open(inbox="always") as client:
                assert (await client.post(path, data={"to": "a@example.test"}, headers=SAME_ORIGIN)).status_code == 404
                assert "template-send" not in (await client.get("/_mail/templates/emails/welcome")).text
    assert len(sent) == 0


async def test_a_form_without_end_is_refused(inboxes: Inboxes, templates: Path) -> None:
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            path = "/_mail/template-send/emails/welcome"
            answer = await client.post(path, content=b"to=" + b"a" * 100_000, headers=SAME_ORIGIN)
    assert answer.status_code == 413


async def test_an_inline_image_is_shown_as_a_stand_in(inboxes: Inboxes, templates: Path) -> None:
    """Which image it is, only the call that sends the template says."""
    (templates / "emails/logo.html").write_text('<img src="cid:logo" alt="Shop">')
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get("/_mail/template-html/emails/logo")).text
            (source,) = re.findall(r'src="([^"]+)"', page)
            image = await client.get(source)
    assert image.status_code == 200
    assert image.headers["content-type"] == "image/svg+xml"


async def test_layouts_and_partials_are_marked(inboxes: Inboxes, templates: Path) -> None:
    (templates / "emails" / "base.html").write_text("{% include 'emails/_footer.txt' %}{% block body %}{% endblock %}")
    (templates / "emails" / "child.html").write_text("{% extends 'emails/base.html' %}{% include ['no', 'x.html'] %}")
    (templates / "x.html").write_text("x")
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get("/_mail/templates")).text
    rows = re.findall(r'/templates/([^"]+)">.*?<span class="kinds">(.*?)</span></a>', page, re.DOTALL)
    marked = {name: word for name, kinds in rows for word in ("layout", "partial") if word in kinds}
    assert marked == {"emails/base": "layout", "emails/_footer": "partial", "x": "partial"}


@pytest.mark.parametrize("suffix", ["html", "htm"])
async def test_a_template_without_text_shows_the_derived_one(inboxes: Inboxes, templates: Path, suffix: str) -> None:
    (templates / "emails" / f"only.{suffix}").write_text("<h1>Hello</h1><p>There</p>")
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            only = (await client.get("/_mail/templates/emails/only?view=text")).text
            pair = (await client.get("/_mail/templates/emails/welcome?view=text")).text
    assert "Hello\n\nThere" in only.replace("HELLO", "Hello")
    assert "Made from the HTML" in only
    assert "Made from the HTML" not in pair


async def test_a_preview_has_its_styles_where_a_send_has_them(inboxes: Inboxes, templates: Path) -> None:
    (templates / "emails" / "styled.html").write_text("<style>p{color:red}</style><p>Hello</p>")
    with override(TEMPLATES_DIR=templates):
        for inline, paragraph in ((True, '<p style="color: red;">'), (False, "<p>")):
            async with inboxes.open(inline_css=inline) as client:
                assert paragraph in (await client.get("/_mail/template-html/emails/styled")).text


async def test_values_are_edited_in_the_page(inboxes: Inboxes, templates: Path) -> None:
    path = "emails/welcome?values=%7B%22user%22%3A%7B%22name%22%3A%22B%3Cb%3Eo%22%7D%7D"
    with override(TEMPLATES_DIR=templates):
        async with inboxes.open() as client:
            page = (await client.get(f"/_mail/templates/{path}&view=values")).text
            frame = (await client.get(f"/_mail/template-html/{path}")).text
            wrong = (await client.get("/_mail/templates/emails/welcome?values=%7B")).text
            nested = {"values": '{"user":' + "[" * 5000 + "]" * 5000 + "}"}
            deep = (await client.get("/_mail/templates/emails/welcome", params=nested)).text
        with override(DEBUG=False):
            async with inboxes.open(inbox="always") as client:
                unedited = (await client.get(f"/_mail/template-html/{path}")).text
    assert "Hello B&lt;b&gt;o" in frame
    assert "edited under “Values”" in page
    assert "B&lt;b&gt;o" in page
    assert "your edit is not valid JSON" in wrong
    assert "nested too deeply" in deep
    assert "Hello Ana Costa" in unedited
