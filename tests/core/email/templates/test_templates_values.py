"""No value makes an element, an attribute or a link that the template did not write."""

from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser

from openviper.core.email.templates import TemplateRenderer

_VALUES = [
    "[x](http://evil.example)",
    "![x](http://evil.example/p.png)",
    "[x]: http://evil.example",
    "[x][1]",
    "[^1]",
    "[^1]: note",
    "<b>bold</b>",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</p><h1>x</h1>",
    "</code></pre><b>x",
    "<!-- c -->",
    "--> <b>x</b> <!--",
    "<http://evil.example>",
    "<a@evil.example>",
    "http://evil.example",
    "www.evil.example",
    "# heading",
    "###### heading ######",
    "a\n===",
    "a\n\n# heading\n\nb",
    "a\n\n    code\n\nb",
    "- item",
    "1. item",
    "\n\n* item\n* item\n",
    "> quotation",
    "| a | b |",
    "|---|---|",
    "a | b",
    "`code`",
    "``` python",
    "~~~",
    "```\n```",
    "*em* **strong** _em_ __strong__ ***x***",
    "---",
    "***",
    "\\",
    "\\`",
    "\\*x\\*",
    "\\[",
    "&lt;b&gt;",
    "&amp;amp;",
    "&#60;b&#62;",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '"><b>x</b>',
    "'><b>x</b>",
    ") [x](http://evil.example",
    '"title") [x](http://evil.example',
    "](http://evil.example)",
    "{: .c onclick=alert(1) }",
    "{: #id }",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "*[HTML]: Hyper",
    "HTML",
    "term\n: definition",
    '<div markdown="1">*x*</div>',
    "\u2028# x\u2029",
    "\u0002klzzwxh:0\u0003",
    "\u0002wzxhzdk:0\u0003",
    "\u0002amp\u0003",
    "\U00100000\U00100001\U00100002",
    "\U000f0000\U000f0001\U00100000\U000f0002",
    "\\\U00100000",
    "x" * 5_000,
    "[" * 2_000,
    "*" * 2_000,
]

_MARKDOWN = {
    "paragraph": "Hello {{ v }}, welcome.",
    "alone": "{{ v }}",
    "line start": "para\n\n{{ v }} follows",
    "emphasis": "*{{ v }}* and **{{ v }}** and _{{ v }}_",
    "link text": "[{{ v }}](https://good.example)",
    "link title": '[t](https://good.example "{{ v }}")',
    "code span": "`{{ v }}` and ``x {{ v }}``",
    "indented code": "p\n\n    {{ v }}\n\nq",
    "fenced code": "```\n{{ v }}\n```",
    "table": "| a | b |\n|---|---|\n| {{ v }} | c |\n| d | {{ v }} |",
    "table head": "| {{ v }} | b |\n|---|---|\n| c | d |",
    "heading": "# {{ v }}\n\n{{ v }}\n---\n",
    "image": '![{{ v }}](https://good.example/a.png "{{ v }}")',
    "list": "- {{ v }}\n- b\n\n1. {{ v }}\n2. c",
    "quotation": "> {{ v }}\n> more",
    "footnote": "text[^1]\n\n[^1]: {{ v }}",
    "definition": "term\n: {{ v }}",
    "abbreviation": "*[HTML]: {{ v }}\n\nHTML is {{ v }}",
    "reference": '[t][1]\n\n[1]: https://good.example "{{ v }}"',
    "raw html": '<p title="{{ v }}">{{ v }}</p>\n\nx <span title="{{ v }}">{{ v }}</span>',
    "comment": "<!-- {{ v }} -->\n\ntext",
    "attribute list": '# T {: title="{{ v }}" }\n',
    "filter": "{{ v|trim|replace('q', 'q') }} {{ [v, v]|join(', ') }} {{ v ~ ' ' ~ v }}",
    "macro": "{% macro m(x) %}**{{ x }}**{% endmacro %}{{ m(v) }} {{ m(v) ~ v }} {{ m(v)|upper }}",
    "call": "{% macro m() %}*{{ caller() }}*{% endmacro %}{% call m() %}{{ v }}{% endcall %}",
    "block set": "{% set x %}**{{ v }}**{% endset %}{{ x }} {{ x ~ v }}",
    "filter block": "{% filter upper %}a {{ v }}{% endfilter %} {% filter replace('NAME', v) %}b NAME{% endfilter %}",
    "loop": "{% for x in [v, v] %}- {{ x }}\n{% endfor %}",
    "recursion": "{% for x in [v, [v]] recursive %}{{ x if x is string else loop(x) }} {% endfor %}",
    "include": "{% include 'part.md' %}\n\n{% include 'part.md' without context %}",
    "import": "{% from 'macros.md' import strong with context %}{{ strong(v) }}",
    "import without context": "{% import 'macros.md' as m %}{{ m.strong(v) }}",
    "inheritance": "{% extends 'base.md' %}{% block body %}{{ v }} {{ super() }}{% endblock %}",
    "autoescape": "{% autoescape true %}{{ v }} {{ '*a*' ~ v }}{% endautoescape %}",
    "escaped": "{{ v|e }} {{ v|forceescape }}",
}

_HTML = {
    "paragraph": "<p>{{ v }}</p>",
    "attribute": "<p title=\"{{ v }}\" class='{{ v }}'>x</p>",
    "macro": "{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(v) }} {{ m(v) ~ v }}",
    "join": "<p>{{ [v, v]|join('<br>'|safe) }}</p>",
    "block set": "{% set x %}<b>{{ v }}</b>{% endset %}{{ x }}",
    "include": "<p>{% include 'part.txt' %}</p>",
    "inheritance": "{% extends 'base.html' %}{% block body %}{{ v }} {{ super() }}{% endblock %}",
    "filter": "<p>{{ v|upper|trim }} {{ v|truncate(20) }}</p>",
    "xmlattr": "<p {{ {'title': v}|xmlattr }}>x</p>",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, contexts in (("md", _MARKDOWN), ("html", _HTML)):
        for name, source in contexts.items():
            (tmp_path / f"{name}.{kind}").write_text(source, encoding="utf-8")
    (tmp_path / "part.md").write_text("> {{ v }}\n", encoding="utf-8")
    (tmp_path / "part.txt").write_text("{{ v }}", encoding="utf-8")
    (tmp_path / "macros.md").write_text("{% macro strong(x) %}**{{ x }}**{% endmacro %}", encoding="utf-8")
    (tmp_path / "base.md").write_text("# Base\n\n{% block body %}{{ v }}{% endblock %}", encoding="utf-8")
    (tmp_path / "base.html").write_text("<h1>Base</h1>{% block body %}{{ v }}{% endblock %}", encoding="utf-8")
    return tmp_path


def _structure(html: str) -> list[tuple[str, tuple[str, ...]]]:
    body = LexborHTMLParser(html).body
    assert body is not None
    return [(node.tag or "", tuple(sorted(node.attributes))) for node in body.traverse() if node.tag != "-comment"]


def _text(html: str) -> str:
    body = LexborHTMLParser(html).body
    assert body is not None
    return " ".join(body.text().split())


@pytest.mark.parametrize(
    "template", [f"{name}.md" for name in _MARKDOWN] + [f"{name}.html" for name in _HTML], ids=lambda name: name
)
async def test_values_stay_text(folder: Path, template: str) -> None:
    """Elements and attributes are those that a harmless value gives, whatever the value."""
    renderer = TemplateRenderer([folder], debug=False)
    expected = _structure((await renderer.render(template, {"v": "harmless"})).html or "")
    for value in _VALUES:
        html = (await renderer.render(template, {"v": value})).html
        assert html is not None
        assert _structure(html) == expected, value


@pytest.mark.parametrize("value", _VALUES, ids=range(len(_VALUES)))
async def test_values_are_shown_as_they_are(folder: Path, value: str) -> None:
    """In the HTML's text, in attributes and in the text part every character is there."""
    renderer = TemplateRenderer([folder], debug=False)
    paragraph = await renderer.render("paragraph.md", {"v": value})
    assert _text(paragraph.html or "") == " ".join(f"Hello {value}, welcome.".split())
    assert paragraph.text == f"Hello {value}, welcome."
    code = await renderer.render("fenced code.md", {"v": value})
    assert _text(code.html or "") == " ".join(value.split())
    image = LexborHTMLParser((await renderer.render("image.md", {"v": value})).html or "").css_first("img")
    assert image is not None
    assert image.attributes["alt"] == value == image.attributes["title"]
    shown = await renderer.render("paragraph.html", {"v": value})
    assert _text(shown.html or "") == " ".join(value.split())


async def test_a_value_cannot_name_another_value(folder: Path) -> None:
    """Characters that stand in for values inside the renderer mean nothing inside a value."""
    (folder / "two.md").write_text("{{ secret }} {% macro m(x) %}{{ x }}{% endmacro %}{{ m(v)|upper }}{{ v ~ 'x' }}")
    rendered = await TemplateRenderer([folder], debug=False).render("two.md", {"secret": "s3cret", "v": "\U00100000"})
    assert rendered.text == "s3cret \U00100000\U00100000x"
    assert (rendered.html or "").count("s3cret") == 1


async def test_an_imported_template_does_not_keep_values_of_the_message_before(folder: Path) -> None:
    (folder / "kept.md").write_text("{% set mark %}*{{ 'fixed' }}*{% endset %}")
    (folder / "user.md").write_text(
        "{{ v }} {% import 'kept.md' as k %}{{ k.mark }} {% include 'kept.md' without context %}"
    )
    renderer = TemplateRenderer([folder], debug=False)
    for name in ("Ann", "Bob"):
        assert (await renderer.render("user.md", {"v": name})).html == f"<p>{name} <em>fixed</em> </p>"


async def test_conditions_and_filters_see_the_true_value(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text(
        "{% if name == 'Ann' and price > 2 %}{{ name|upper }}{% endif %} {{ '%.2f'|format(price) }} "
        "{{ price|round(1) }} {{ items|length }} {{ items|join('*') }} {{ none }} {{ 0 }} {{ true }} {{ name ~ 1 }}"
    )
    context = {"name": "Ann", "price": 2.345, "items": ["*a*", "b"], "none": None}
    rendered = await TemplateRenderer([tmp_path], debug=True).render("t.md", context)
    assert rendered.text == "ANN 2.35 2.3 2 *a**b None 0 True Ann1"
    assert _text(rendered.html or "") == rendered.text


async def test_markup_is_trusted_html(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text("**x** {{ '<i>*a*</i>'|safe }}")
    (tmp_path / "t.html").write_text("{{ '<i>*a*</i>'|safe }}")
    renderer = TemplateRenderer([tmp_path], debug=True)
    assert (await renderer.render("t.md")).html == "<p><strong>x</strong> <i>*a*</i></p>"
    assert (await renderer.render("t.html")).html == "<i>*a*</i>"


async def test_values_that_would_be_attributes_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text("<p {{ v }} class={{ v }}>x</p>\n\n<h{{ v }}>y")
    html = (await TemplateRenderer([tmp_path], debug=True).render("t.md", {"v": "onclick=alert(1) a"})).html or ""
    assert [entry for entry in _structure(html) if entry[1]] == [("p", ("class",))]


_BAD_TARGETS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "\x01javascript:alert(1)",
    "java\tscript:alert(1)",
    "java\nscript:alert(1)",
    "java\r\nscript:alert(1)",
    "java\x00script:alert(1)",
    "javascript\u200b:alert(1)",
    "\ufeffjavascript:alert(1)",
    "\u00a0javascript:alert(1)",
    "\uff4aavascript:alert(1)",
    "javascript\uff1aalert(1)",
    "&#106;avascript:alert(1)",
    "javascript&colon;alert(1)",
    "&Tab;javascript:alert(1)",
    "javascript:https://good.example",
    "vbscript:msgbox(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:image/svg+xml;base64,AAAA",
    "data:image/png;base64,AAAA",
    "file:///etc/passwd",
    "ftp://evil.example",
    "view-source:http://x",
    "blob:http://x",
    "ms-msdt:/id",
    "//evil.example",
    "\\\\evil.example\\share",
    "/\\evil.example",
    "/\t/evil.example",
    "x:y",
    ":x",
]
_GOOD_TARGETS = [
    "https://good.example/?a=1&b=(2)",
    "HTTP://good.example",
    "mailto:a@good.example",
    "tel:+49123",
    "cid:logo@x",
    "/orders/1",
    "orders/1?x=a:b",
    "#top",
    "?q=javascript:1",
    "https://good.example/ü ö",
]
_LINKS = {
    "a.md": "[go]({{ t }})",
    "b.md": '[go]({{ t }} "title")',
    "c.md": "[go][1]\n\n[1]: {{ t }}",
    "d.md": "![alt]({{ t }})",
    "e.md": '<a href="{{ t }}">go</a>',
    "f.md": "<div><a class=x href={{ t }}>go</a></div>",
    "g.md": "x <a href='{{ t }}'>go</a>",
    "h.md": "[go](<{{ t }}>)",
    "a.html": '<a href="{{ t }}">go</a>',
    "b.html": "<a\nHREF = '{{ t }}'>go</a>",
    "c.html": '<img alt="" src="{{ t }}">',
    "d.html": '<!-- don\'t <b title="> --><a title="a > b" href="{{ t }}">go</a>',
    "e.html": "<a {{ {'href': t}|xmlattr }}>go</a>",
    "f.html": '<style>a{content:"<a"}</style><form action="{{ t }}"></form>',
    "g.html": '<svg><a xlink:href="{{ t }}">go</a></svg>',
}


@pytest.fixture
def links(tmp_path: Path) -> TemplateRenderer:
    for name, source in _LINKS.items():
        (tmp_path / name).write_text(source)
    return TemplateRenderer([tmp_path], debug=False)


def _targets(html: str) -> list[str]:
    body = LexborHTMLParser(html).root
    assert body is not None
    names = ("href", "src", "action", "xlink:href")
    return [node.attributes[name] or "" for node in body.traverse() for name in names if name in node.attributes]


@pytest.mark.parametrize("template", _LINKS)
async def test_values_lead_only_to_allowed_schemes(links: TemplateRenderer, template: str) -> None:
    for target in _BAD_TARGETS:
        assert _targets((await links.render(template, {"t": target})).html or "") == [], target
    for target in _GOOD_TARGETS:
        kept = _targets((await links.render(template, {"t": target})).html or "")
        assert kept == [target], target


async def test_a_scheme_put_together_from_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text("[a]({{ a }}{{ b }}) [b]({{ a }}:{{ b }}) [c](java{{ c }})")
    (tmp_path / "t.html").write_text('<a href="{{ a }}{{ b }}"><a href="{{ a }}:{{ b }}"><a href="java{{ c }}">')
    renderer = TemplateRenderer([tmp_path], debug=True)
    for name in ("t.md", "t.html"):
        html = (await renderer.render(name, {"a": "javascript", "b": ":alert(1)", "c": "script:alert(1)"})).html or ""
        assert _targets(html) == []


async def test_outlook_comments_are_guarded_too(tmp_path: Path) -> None:
    (tmp_path / "t.html").write_text('<!--[if mso]><v:roundrect href="{{ t }}"><![endif]--><a href="{{ t }}">x</a>')
    renderer = TemplateRenderer([tmp_path], debug=True)
    assert "javascript" not in ((await renderer.render("t.html", {"t": "javascript:1"})).html or "")
    assert ((await renderer.render("t.html", {"t": "https://e.com"})).html or "").count("https://e.com") == 2


async def test_the_author_of_html_may_use_other_schemes(tmp_path: Path) -> None:
    (tmp_path / "t.html").write_text('<a href="myapp://open/{{ i }}">a</a><img src="data:image/png;base64,{{ d }}">')
    html = (await TemplateRenderer([tmp_path], debug=True).render("t.html", {"i": 1, "d": "AAAA"})).html
    assert html == '<a href="myapp://open/1">a</a><img src="data:image/png;base64,AAAA">'


async def test_words_before_a_colon_are_no_schemes_of_the_author(tmp_path: Path) -> None:
    source = 'file: a, data: b, <p title="note: x" style="x:y">ftp: c</p><a href="{{ t }}">go</a>'
    (tmp_path / "t.html").write_text(source)
    renderer = TemplateRenderer([tmp_path], debug=True)
    for target in ("file://evil.example/share", "ftp://evil.example", "note:x", "data:image/png;base64,AAAA"):
        assert _targets((await renderer.render("t.html", {"t": target})).html or "") == [], target


async def test_addresses_in_angle_brackets_become_links(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text(
        "<{{ u }}> <{{ m }}> <{{ n }}> <{{ j }}> `<{{ u }}>` <{{ n }}@e.example> <x@e.example>"
    )
    context = {"u": "https://e.com/?a&b", "m": "a@e.example", "n": "Ann", "j": "javascript:x"}
    html = (await TemplateRenderer([tmp_path], debug=True).render("t.md", context)).html
    assert html == (
        '<p><a href="https://e.com/?a&amp;b">https://e.com/?a&amp;b</a> <a href="mailto:a@e.example">a@e.example</a> '
        "&lt;Ann&gt; &lt;javascript:x&gt; <code>&lt;https://e.com/?a&amp;b&gt;</code> "
        '<a href="mailto:Ann@e.example">Ann@e.example</a> <a href="mailto:x@e.example">x@e.example</a></p>'
    )
