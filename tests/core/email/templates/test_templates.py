"""Which files a name stands for, what each kind gives, and how failures are told."""

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from markupsafe import Markup

from openviper.core.email.errors import InvalidMessage, TemplateFailed
from openviper.core.email.templates import RenderedTemplate, TemplateRenderer


def _write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


async def test_each_extension_gives_its_parts(tmp_path: Path) -> None:
    _write(
        tmp_path, {"a.txt": "Hi {{ n }}", "a/b.html": "<p>{{ n }}</p>", "c.htm": "<i>{{ n }}</i>", "d.md": "*{{ n }}*"}
    )
    renderer = TemplateRenderer([tmp_path], debug=True)
    context = {"n": "<A>"}
    assert await renderer.render("a.txt", context) == RenderedTemplate("Hi <A>", None, None)
    assert await renderer.render("a/b.html", context) == RenderedTemplate(None, "<p>&lt;A&gt;</p>", None)
    assert await renderer.render("c.htm", context) == RenderedTemplate(None, "<i>&lt;A&gt;</i>", None)
    assert await renderer.render("d.md", context) == RenderedTemplate("*<A>*", "<p><em>&lt;A&gt;</em></p>", None)


@pytest.mark.parametrize(
    ("extensions", "text", "html"),
    [
        (["txt"], "txt", None),
        (["html"], None, "html"),
        (["htm"], None, "htm"),
        (["md"], "md", "<p>md</p>"),
        (["txt", "html"], "txt", "html"),
        (["txt", "md"], "txt", "<p>md</p>"),
        (["html", "md"], "md", "html"),
        (["html", "htm"], None, "html"),
        (["txt", "html", "htm", "md"], "txt", "html"),
    ],
)
async def test_a_stem_uses_every_file_that_it_has(
    tmp_path: Path, extensions: list[str], text: str | None, html: str | None
) -> None:
    _write(tmp_path, {f"emails/hi.{extension}": extension for extension in extensions})
    renderer = TemplateRenderer([tmp_path], debug=False)
    for _ in range(2):
        assert await renderer.render("emails/hi") == RenderedTemplate(text, html, None)


async def test_the_first_folder_wins(tmp_path: Path) -> None:
    _write(tmp_path, {"one/a.txt": "one", "two/a.txt": "two", "two/b.txt": "b {% include 'a.txt' %}"})
    renderer = TemplateRenderer([tmp_path / "one", tmp_path / "two"], debug=False)
    assert (await renderer.render("a.txt")).text == "one"
    assert (await renderer.render("b.txt")).text == "b one"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("t.txt", "{% block subject %} Order {{ n }}\n  of today\n{% endblock %}\nBody"),
        ("t.html", "{% block subject %}Order {{ n }} of today{% endblock %}Body"),
        ("t.md", "{% block subject %}Order {{ n }} of today{% endblock %}\n\nBody"),
        ("t.txt", "{% extends 'base.txt' %}{% block subject %}{{ super() }} of today{% endblock %}"),
        ("t.html", "{% extends 'base.txt' %}{% block subject %}{{ super() }} of today{% endblock %}"),
        ("t.md", "{% extends 'base.txt' %}{% block subject %}{{ super() }} of today{% endblock %}"),
        ("t.txt", "{% extends 'bare.txt' %}{% block subject %}Order {{ n }} of today{% endblock %}"),
        ("t.md", "{% extends 'bare.txt' %}{% set m = n %}{% block subject %}Order {{ m }} of today{% endblock %}"),
        (
            "t.html",
            "{% macro s(x) %}Order {{ x }} of\ntoday{% endmacro %}{% block subject %}{{ s(n) }}{% endblock %}Body",
        ),
        (
            "t.txt",
            "{% macro s(x) %}Order {{ x }} of\ntoday{% endmacro %}{% block subject %}{{ s(n) }}{% endblock %}Body",
        ),
    ],
)
async def test_the_subject_block_gives_the_subject_and_no_body(tmp_path: Path, name: str, source: str) -> None:
    """Never escaped, folded to one line, wherever it is defined."""
    base = "{% block subject %}Order {{ n }}{% endblock %}{% block body %}Body{% endblock %}"
    _write(tmp_path, {name: source, "base.txt": base, "bare.txt": "{% block body %}Body{% endblock %}"})
    rendered = await TemplateRenderer([tmp_path], debug=True).render(name, {"n": '<"7"> & *x* &amp;'})
    assert rendered.subject == 'Order <"7"> & *x* &amp; of today'
    assert rendered.text in {"Body", None}
    assert rendered.html in {"Body", "<p>Body</p>", None}


@pytest.mark.parametrize("name", ["t.txt", "t.html", "t.md"])
async def test_the_subject_may_be_repeated_in_the_body(tmp_path: Path, name: str) -> None:
    _write(
        tmp_path,
        {name: "{% block subject %}Hi {{ n }}{% endblock %}{% filter upper %}x{% endfilter %} {{ self.subject() }}"},
    )
    rendered = await TemplateRenderer([tmp_path], debug=True).render(name, {"n": "*Ann*"})
    assert rendered.subject == "Hi *Ann*"
    assert (rendered.html or rendered.text) in {"X Hi *Ann*", "<p>X Hi *Ann*</p>"}


async def test_the_text_decides_the_subject_of_a_pair(tmp_path: Path) -> None:
    block = "{% block subject %}{}{% endblock %}x"
    _write(tmp_path, {"a.txt": block.replace("{}", "T"), "a.html": block.replace("{}", "H"), "b.txt": "x"})
    _write(tmp_path, {"b.html": block.replace("{}", "H &amp; M"), "c.txt": block.replace("{}", " ")})
    renderer = TemplateRenderer([tmp_path], debug=True)
    assert [(await renderer.render(name)).subject for name in "abc"] == ["T", "H & M", None]


@pytest.mark.parametrize("name", ["t.txt", "t.html", "t.md"])
@pytest.mark.parametrize("value", ["a\nBcc: x@evil.example", "a\r\nBcc: x@evil.example", "a\rb"])
async def test_a_line_break_in_a_value_is_refused_in_the_subject(tmp_path: Path, name: str, value: str) -> None:
    _write(tmp_path, {name: "{% block subject %}Hi {{ v }}{% endblock %}{{ v }}"})
    with pytest.raises(TemplateFailed, match="subject: a value has a line break"):
        await TemplateRenderer([tmp_path], debug=False).render(name, {"v": value})


@pytest.mark.parametrize("name", ["t.txt", "t.html", "t.md"])
@pytest.mark.parametrize(
    "source", ["line\n{{ missing }}", "\n{{ user.missing }}", "\n{{ missing.x.y }}", "\n{% if missing %}{% endif %}"]
)
async def test_a_missing_variable_is_an_error_in_debug_and_one_warning_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, source: str
) -> None:
    _write(tmp_path, {name: source})
    context = {"user": {"name": "Ann"}}
    with pytest.raises(TemplateFailed, match=r"line 2: .*missing' is undefined|line 2: .*no attribute 'missing'"):
        await TemplateRenderer([tmp_path], debug=True).render(name, context)
    renderer = TemplateRenderer([tmp_path], debug=False)
    for _ in range(3):
        rendered = await renderer.render(name, context)
        assert (rendered.text or rendered.html or "").strip() in {"", "line", "<p>line</p>"}
    assert [(record.name, record.levelno) for record in caplog.records] == [("openviper.email", logging.WARNING)]
    assert name in caplog.text
    assert "missing" in caplog.text


async def test_what_is_asked_to_be_optional_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, {"t.md": "{{ x|default('d') }}{% if x is defined %}no{% endif %}{{ 'v' if false }}"})
    for debug in (True, False):
        renderer = TemplateRenderer([tmp_path], debug=debug)
        if debug:
            _write(tmp_path, {"t.md": "{{ x|default('d') }}{% if x is defined %}no{% endif %}"})
        assert (await renderer.render("t.md")).text == "d"
    assert caplog.records == []


async def test_a_missing_variable_has_no_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, {"t.txt": "{% for x in missing %}x{% else %}none{% endfor %} {{ missing|length }}{{ missing.a }}"})
    assert (await TemplateRenderer([tmp_path], debug=False).render("t.txt")).text == "none 0"
    assert len(caplog.records) == 1


async def test_warnings_about_names_that_come_from_values_have_an_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, {"t.txt": "{% for key in keys %}{{ known[key] }}{% endfor %}"})
    renderer = TemplateRenderer([tmp_path], debug=False)
    await renderer.render("t.txt", {"keys": [f"k{number}" for number in range(1_500)], "known": {}})
    assert len(caplog.records) == 1_000


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ '%d' % v|int(default=convert(v)) }}", "ValueError: invalid literal"),
        ("{{ convert(v) }}", "ValueError: inv"),
    ],
)
async def test_a_failed_conversion_does_not_show_the_value(tmp_path: Path, source: str, reason: str) -> None:
    _write(tmp_path, {"t.txt": source})
    with pytest.raises(TemplateFailed, match=reason) as raised:
        await TemplateRenderer([tmp_path], debug=False).render("t.txt", {"v": "Anna M.'s house", "convert": int})
    assert "Anna" not in str(raised.value)


async def test_calculating_with_a_missing_variable_is_always_an_error(tmp_path: Path) -> None:
    _write(tmp_path, {"t.txt": "{{ price * 2 }}"})
    with pytest.raises(TemplateFailed, match="line 1: 'price' is undefined"):
        await TemplateRenderer([tmp_path], debug=False).render("t.txt", {})


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"t.txt": "a\n{% if %}"}, "line 2: Expected an expression"),
        ({"t.txt": "a\n\n{{ 1 / 0 }}"}, "line 3: ZeroDivisionError"),
        ({"t.md": "a\n{{ x|nofilter }}"}, "line 2: No filter named 'nofilter'"),
        ({"t.html": "a\n{% include 'gone.html' %}"}, "line 2: there is no gone.html in"),
        ({"t.html": "{% extends 'b.html' %}", "b.html": "x\n{{ boom() }}"}, "b.html, line 2: RuntimeError: inside"),
        ({"t.html": "{% include 'b.html' %}", "b.html": "x\n{% endif %}"}, "b.html, line 2: Encountered unknown tag"),
        ({"t.txt": "{% include ['../x'] %}"}, "the name has an empty segment, '.' or '..'"),
        ({"t.txt": "{{ ''.__class__.__mro__ }}"}, "__class__ is not open to templates"),
        ({"t.txt": "{{ ''|attr('__class__') }}"}, "__class__"),
        ({"t.txt": "{{ boom.__globals__ }}"}, "__globals__ is not open to templates"),
        ({"t.txt": "{{ '{0.__class__}'.format(1) }}"}, "__class__ is not open to templates"),
        ({"t.txt": "{% for i in range(1000000) %}{% endfor %}"}, "Range too big"),
        ({"t.txt": "{{ 'a' * 100000000 }}"}, "a repetition makes more than"),
        ({"t.txt": "{{ 9 ** 99999 }}"}, "a power is too large"),
        ({"t.html": "a\n<td width={{ x }}>"}, "line 2: an attribute's value is not in quotes"),
        ({"t.md": "\U000f0001"}, "characters above U\\+F0000"),
    ],
)
async def test_failures_name_the_template_and_the_line(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    def boom() -> None:
        raise RuntimeError("inside")

    _write(tmp_path, files)
    name = next(iter(files))
    for debug in (True, False):
        with pytest.raises(TemplateFailed, match=reason) as caught:
            await TemplateRenderer([tmp_path], debug=debug).render(name, {"boom": boom, "x": 1})
        assert caught.value.template == name
        assert isinstance(caught.value, InvalidMessage)


@pytest.mark.parametrize(
    "expression",
    [
        "'x' * 10**9",
        "10**9 * [1]",
        "['x' * 1000] * 10**6",
        "[[['x' * 1000]] * 1000] * 1000",
        "'x'.ljust(10**9)",
        "'x'.rjust(width)",
        "'x'.center(10**9, '*')",
        "'1'.zfill(10**9)",
        "'\\t'.expandtabs(10**9)",
        "('x' * 9999).replace('x', 'y' * 9999)",
        "('x' * 9999).join('y' * 9999)",
        "('x' * 9999).join(range(9999)|map('string'))",
        "'x'.encode().ljust(10**9)",
        "(1).to_bytes(10**9, 'big')",
        "('x' * 9999).translate({120: 'y' * 9999})",
        "'x'|attr('ljust')(10**9)",
        "('x'|e).ljust(10**9)",
        "'%999999999d' % 1",
        "'%.*f' % (10**9, 1)",
        "'%(a)999999999d' % {'a': 1}",
        "'%(a(b(c)))999999999d' % {'a(b(c))': 1}",
        "'%999999999d'|format(1)",
        "'%-*d'|format(10**9, 1)",
        "('%99999d' * 99)|format(1)",
        "'{:999999999}'.format(1)",
        "'{:{}}'.format(1, 10**9)",
        "'{a:>999999}{a:>999999}'.format_map({'a': 1})",
        "('{:99999999}'|e).format(1)",
        "'x'|center(10**9)",
        "'x'|center(width=10**9)",
        "('x\\n' * 999)|indent(9999)",
        "'x'|indent('y' * 10**6 ~ 'y')",
        "('x' * 9999)|replace('x', 'y' * 9999)",
        "('y' * 9999)|join('x' * 9999)",
        "range(9999)|map('string')|join('x' * 9999)",
        "[1]|batch(10**9, 'x')|list",
        "[1]|slice(10**9)|list",
        "('x ' * 9999)|wordwrap(1, wrapstring='y' * 9999)",
        "{'a': [1, 2]}|tojson(indent=10**9)",
        "lipsum(10**9)",
        "lipsum(1, max=10**9)",
        "['x']|map('center', 10**9)|list",
    ],
)
@pytest.mark.parametrize("host", [None, jinja2.Environment()])
async def test_huge_repetitions_are_refused_before_they_are_made(
    tmp_path: Path, expression: str, host: jinja2.Environment | None
) -> None:
    _write(tmp_path, {f"t.{kind}": f"Hello\n{{{{ {expression} }}}}" for kind in ("txt", "html", "md")})
    renderer = TemplateRenderer([tmp_path], debug=False, environment=host)
    for name in ("t.txt", "t.html", "t.md"):
        with pytest.raises(TemplateFailed, match=r"line [23]: [%*a-z_]+: a repetition makes more than 1000000"):
            await renderer.render(name, {"width": 10**9})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("'x'.ljust(3, '.') ~ 'x'|center(3) ~ '7'.zfill(3)", "x.. x 007"),
        ("'%5.2f%% of %-3s|' % (12.5, 'a')", "12.50% of a  |"),
        ("'%(a)s %(b)03d'|format(a='x', b=7)", "x 007"),
        ("'%*d' % (4, 123456789)", "123456789"),
        ("'Order 123456789: %s'|format(1)", "Order 123456789: 1"),
        ("'{:>5}{n:03}'.format('ab', n=7)", "   ab007"),
        ("'{a} {b:%Y-%m}'.format_map({'a': 1, 'b': date})", "1 2026-05"),
        ("'a\\nb'|indent(2)", "a\n  b"),
        ("[1, 2, 3]|batch(2, '-')|list", "[[1, 2], [3, '-']]"),
        ("range(3)|map('string')|join(', ')", "0, 1, 2"),
        ("'a-b'|replace('-', '+') ~ 'aaa'.replace('a', 'b', 1)", "a+bbaa"),
        ("{'a': [1]}|tojson(indent=1)", '{\n "a": [\n  1\n ]\n}'),
        ("'a b'|wordwrap(1)", "a\nb"),
        ("-3 % 2", "1"),
        ("lipsum(1, False, 1, 2)|length < 40", "True"),
    ],
)
async def test_ordinary_formatting_is_possible(tmp_path: Path, expression: str, expected: str) -> None:
    _write(tmp_path, {"t.txt": f"{{{{ {expression} }}}}"})
    rendered = await TemplateRenderer([tmp_path], debug=True).render("t.txt", {"date": datetime(2026, 5, 1)})  # noqa: DTZ001
    assert (rendered.text or "").strip() == expected.strip()


@pytest.mark.parametrize("source", ["{{ 'x' * 3 }} {{ 3 * [1] }} {{ 2 ** 10 }} {{ 2 * 0.5 }} {{ range(3)|list }}"])
async def test_ordinary_calculations_are_possible(tmp_path: Path, source: str) -> None:
    _write(tmp_path, {"t.txt": source})
    assert (await TemplateRenderer([tmp_path], debug=True).render("t.txt")).text == "xxx [1, 1, 1] 1024 1.0 [0, 1, 2]"


async def test_files_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(TemplateFailed, match=r"t\.txt is not UTF-8: .* at byte 2"):
        await TemplateRenderer([tmp_path], debug=False).render("t.txt")


async def test_a_slow_template_leaves_the_event_loop(tmp_path: Path) -> None:
    """After a rendering that took long, the next is done in a thread."""
    _write(tmp_path, {"t.txt": "{{ slow() }}"})
    threads: list[threading.Thread] = []

    def slow() -> str:
        threads.append(threading.current_thread())
        if len(threads) == 2:
            sum(range(2_000_000))
        return "x"

    renderer = TemplateRenderer([tmp_path], debug=False)
    for _ in range(3):
        await renderer.render("t.txt", {"slow": slow})
    assert [thread is threading.main_thread() for thread in threads] == [False, True, False]


async def test_a_template_that_waits_leaves_the_event_loop_after_three_times_in_a_row(tmp_path: Path) -> None:
    """A busy machine interrupts now and then; that moves no template into a thread for good."""
    _write(tmp_path, {"t.txt": "{{ wait() }}"})
    threads: list[threading.Thread] = []
    waits = iter([False, True, True, False, True, True, True, False])

    def wait() -> str:
        threads.append(threading.current_thread())
        if next(waits):
            signal.sigtimedwait({signal.SIGUSR1}, 0.02)
        return "x"

    renderer = TemplateRenderer([tmp_path], debug=False)
    for _ in range(8):
        await renderer.render("t.txt", {"wait": wait})
    on_loop = [thread is threading.main_thread() for thread in threads]
    assert on_loop == [False, True, True, True, True, True, True, False]


async def test_a_long_text_is_converted_in_a_thread(tmp_path: Path) -> None:
    _write(tmp_path, {"t.md": "{{ v }}\n\n" + "word **bold**\n\n" * 4_000, "u.html": "<p>{{ v }}</p>"})
    renderer = TemplateRenderer([tmp_path], debug=False)
    for _ in range(2):
        assert ((await renderer.render("t.md", {"v": "*a*"})).html or "").startswith("<p>*a*</p>\n<p>word <strong>")
        assert (await renderer.render("u.html", {"v": "<" * 60_000})).html == f"<p>{'&lt;' * 60_000}</p>"


async def test_a_failure_keeps_its_cause(tmp_path: Path) -> None:
    _write(tmp_path, {"t.txt": "{{ 1 / 0 }}"})
    with pytest.raises(TemplateFailed) as caught:
        await TemplateRenderer([tmp_path], debug=False).render("t.txt")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_missing_template_lists_the_folders(tmp_path: Path) -> None:
    renderer = TemplateRenderer([tmp_path / "one", tmp_path / "two"], debug=False)
    with pytest.raises(TemplateFailed) as caught:
        await renderer.render("emails/hi")
    assert f"{tmp_path / 'one'}, {tmp_path / 'two'}" in str(caught.value)
    assert ".txt, .html, .htm, .md" in str(caught.value)
    with pytest.raises(TemplateFailed, match="TEMPLATES_DIR"):
        await TemplateRenderer([], debug=False).render("hi.txt")


@pytest.mark.parametrize("name", ["a.pdf", "a.TXT", "a.j2", "a.html.j2", "a.", "a.jinja2", "a.py"])
async def test_another_extension_is_refused_with_the_allowed_ones(tmp_path: Path, name: str) -> None:
    _write(tmp_path, {name: "x"})
    with pytest.raises(TemplateFailed, match=r"\.txt, \.html, \.htm, \.md"):
        await TemplateRenderer([tmp_path], debug=False).render(name)


_HOSTILE_NAMES: list[Any] = [
    "", " ", "\t", ".", "..", "/", "//", "\\", "~", "%", "secret", "secret/", "./secret.txt", ".//secret.txt",
    "../secret.txt", "../../secret.txt", "a/../../secret.txt", "a/../secret.txt", "a/./b.txt", "a//b.txt", "a/b.txt/",
    "/secret.txt", "//secret.txt", "///etc/passwd", "/etc/passwd", "/etc/passwd.txt", "file:///etc/passwd",
    "..\\secret.txt", "a\\..\\..\\secret.txt", "\\secret.txt", "\\\\server\\share\\x.txt", "C:\\secret.txt",
    "C:/secret.txt", "c:secret.txt", "%2e%2e/secret.txt", "%2E%2E%2fsecret.txt", "..%2fsecret.txt", "..%5csecret.txt",
    "%252e%252e%252fsecret.txt", "..%c0%afsecret.txt", "%00.txt", "a%00.txt", "a\x00.txt", "\x00", "a.txt\x00.md",
    "a.txt\n", "a\r\n.txt", "a\x7f.txt", "a\u202etxt.md", "a\u200b.txt", "\u2028a.txt", "\ufeffa.txt", "\ud800.txt",
    "\uff0e\uff0e/secret.txt", "\u2025/secret.txt", "..\uff0fsecret.txt", "\uff0e\uff0e\uff0fsecret.txt",
    "..\uff3csecret.txt",
    "~/secret.txt", "~root/secret.txt", ".. /secret.txt", " ../secret.txt", "a/ ../x.txt", "a /b.txt", "a.txt ",
    "/dev/stdin", "dev", "link.txt", "linked/secret.txt", "loop.txt", "folder.txt", "pipe.txt", "a" * 300 + ".txt",
    "a/" * 400 + "b.txt", "a" * 100_000, "a.txt/b.txt", "a.txt:stream.txt", "con:.txt", "http://evil.example/a.txt",
    "{{ 7 }}.txt", "${HOME}.txt", "*.txt", None, 7, b"a.txt", ["a.txt"], Path("a.txt"), object(),
]  # fmt: skip


@pytest.fixture
def guarded(tmp_path: Path) -> Path:
    templates = tmp_path / "templates"
    _write(tmp_path, {"secret.txt": "s3cret", "templates/a.txt": "x", "templates/a/b.txt": "x"})
    (templates / "link.txt").symlink_to(tmp_path / "secret.txt")
    (templates / "linked").symlink_to(tmp_path)
    (templates / "loop.txt").symlink_to("loop.txt")
    (templates / "folder.txt").mkdir()
    subprocess.run(["mkfifo", str(templates / "pipe.txt")], check=True)
    return templates


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("name", _HOSTILE_NAMES, ids=range(len(_HOSTILE_NAMES)))
async def test_names_that_leave_the_folders_are_refused(guarded: Path, name: Any, debug: bool) -> None:
    assert len(_HOSTILE_NAMES) >= 80
    renderer = TemplateRenderer([guarded], debug=debug)
    with pytest.raises(TemplateFailed):
        await renderer.render(name, {})


@pytest.mark.parametrize("name", [name for name in _HOSTILE_NAMES if isinstance(name, str)][::2])
async def test_includes_are_held_to_the_same_names(guarded: Path, name: str) -> None:
    _write(guarded, {"user.txt": "{% include name %}"})
    with pytest.raises(TemplateFailed):
        await TemplateRenderer([guarded], debug=False).render("user.txt", {"name": name})


async def test_links_inside_the_folders_are_followed(tmp_path: Path) -> None:
    _write(tmp_path, {"one/real.txt": "x", "two/y.txt": "y"})
    (tmp_path / "one/link.txt").symlink_to("real.txt")
    (tmp_path / "one/over.txt").symlink_to(tmp_path / "two/y.txt")
    (tmp_path / "alias").symlink_to(tmp_path / "one")
    renderer = TemplateRenderer([tmp_path / "alias", tmp_path / "two"], debug=False)
    assert (await renderer.render("link.txt")).text == "x"
    assert (await renderer.render("over.txt")).text == "y"


async def test_templates_are_reloaded_in_debug_only(tmp_path: Path) -> None:
    _write(tmp_path, {"t.txt": "{% include 'part.txt' %}", "part.txt": "old"})
    developing, serving = (TemplateRenderer([tmp_path], debug=debug) for debug in (True, False))
    assert [(await renderer.render("t.txt")).text for renderer in (developing, serving)] == ["old", "old"]
    _write(tmp_path, {"part.txt": "newer"})
    assert [(await renderer.render("t.txt")).text for renderer in (developing, serving)] == ["newer", "old"]


async def test_the_applications_environment_lends_filters_globals_syntax_and_templates(tmp_path: Path) -> None:
    host = jinja2.Environment(
        loader=jinja2.DictLoader({"host.md": "# [[ site ]]", "t.txt": "hidden"}),
        variable_start_string="[[",
        variable_end_string="]]",
        extensions=["jinja2.ext.do"],
    )
    host.filters["money"] = lambda amount: f"{amount:.2f} €"
    host.tests["big"] = lambda amount: amount > 10
    host.globals["site"] = "<Shop>"
    _write(tmp_path, {"t.txt": "[[ 3|money ]] [[ 11 is big ]] [[ site ]]{% do 1 %}{% include 'host.md' %}"})
    renderer = TemplateRenderer([tmp_path], debug=True, environment=host)
    assert (await renderer.render("t.txt")).text == "3.00 € True <Shop># <Shop>"
    assert (await renderer.render("host.md")).html == "<h1>&lt;Shop&gt;</h1>"
    with pytest.raises(TemplateFailed, match="the application's own loader"):
        await renderer.render("gone.md")
    _write(tmp_path, {"bad.txt": "[[ site.__class__ ]]"})
    with pytest.raises(TemplateFailed, match="not open to templates"):
        await renderer.render("bad.txt")


async def test_kept_templates_are_rendered_without_touching_the_disk(tmp_path: Path) -> None:
    """Once loaded, neither files nor threads are needed; includes and parents come along."""
    _write(
        tmp_path, {"t.md": "{% extends 'base.md' %}{% block b %}{% include 'p.md' %}{% endblock %}", "p.md": "{{ n }}"}
    )
    _write(
        tmp_path, {"base.md": "{% if n > 1 %}{% include 'q.md' %}{% endif %}{% block b %}{% endblock %}", "q.md": "q "}
    )
    seen: list[threading.Thread] = []

    class Value(int):
        def __str__(self) -> str:
            seen.append(threading.current_thread())
            return super().__repr__()

    renderer = TemplateRenderer([tmp_path], debug=False)
    await renderer.prepare()
    assert (await renderer.render("t.md", {"n": Value(1)})).text == "1"
    for path in tmp_path.iterdir():
        path.unlink()
    for _ in range(5):
        assert (await renderer.render("t.md", {"n": Value(2)})).text == "q 2"
    assert seen[0] is not threading.main_thread()
    assert seen[1] is threading.main_thread()


async def test_an_include_that_is_known_only_while_rendering_is_loaded_in_a_thread(tmp_path: Path) -> None:
    _write(tmp_path, {"t.txt": "{% include name %}{% include 'no.txt' ignore missing %}", "a.txt": "a", "b.txt": "b"})
    renderer = TemplateRenderer([tmp_path], debug=False)
    assert [(await renderer.render("t.txt", {"name": f"{name}.txt"})).text for name in "abab"] == list("abab")


async def test_renderings_at_once_do_not_mix(tmp_path: Path) -> None:
    """Many tasks in the loops of several threads, each with its own values and subject."""
    source = (
        "{% block subject %}{{ n }}{% endblock %}# {{ n }}\n\n{% for i in range(20) %}- {{ n }} {{ i }}\n{% endfor %}"
    )
    _write(
        tmp_path, {"t.md": source, "t.txt": source, "u.html": "<b>{{ n }}</b>{% block subject %}{{ n }}{% endblock %}"}
    )
    renderer = TemplateRenderer([tmp_path], debug=False)
    failures: list[str] = []

    async def one(number: str) -> None:
        for name in ("t", "t.md", "u.html"):
            rendered = await renderer.render(name, {"n": f"*{number}*"})
            expected = 21 if name != "u.html" else 1
            right = rendered.subject == f"*{number}*" and (rendered.html or "").count(f"*{number}*") == expected
            if not right or "\U00100000" in (rendered.html or ""):
                failures.append(number)

    async def many(thread: int) -> None:
        await asyncio.gather(*(one(f"{thread}-{number}") for number in range(40)))

    threads = [threading.Thread(target=lambda thread=thread: asyncio.run(many(thread))) for thread in range(4)]
    for thread in threads:
        thread.start()
    await many(9)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert failures == []


async def test_css_is_inlined_and_nothing_is_loaded_for_it(tmp_path: Path) -> None:
    (tmp_path / "site.css").write_text("p { color: blue }")
    style = "<style>p { color: red }</style>"
    link = f'<link rel="stylesheet" href="{(tmp_path / "site.css").as_uri()}"><link rel="stylesheet" href="site.css">'
    remote = '<link rel="stylesheet" href="http://127.0.0.1:9/x.css">'
    _write(tmp_path, {"t.html": f"<html><head>{style}{link}{remote}</head><body><p>{{{{ n }}}}</p></body></html>"})
    renderer = TemplateRenderer([tmp_path], debug=False, inline_css=True)
    await renderer.prepare()
    html = (await renderer.render("t.html", {"n": "<x>"})).html or ""
    assert '<p style="color: red;">&lt;x&gt;</p>' in html
    assert "blue" not in html
    assert "<style></style>" in html


@pytest.mark.parametrize(
    ("sheet", "kept"),
    [
        (
            "<style>.x{color:red}@media (max-width:600px){.x{width:100%!important}}</style>",
            "@media (max-width:600px){.x{width:100%!important}}",
        ),
        ("<style>@font-face{font-family:F;src:url(f)} .x{color:red}</style>", "@font-face{font-family:F;src:url(f)}"),
        ("<style>.x{color:red} .x:hover, .x{top:0}</style>", ".x:hover { top: 0; }"),
        ("<style>.x{color:red} u + .body .gmail{left:0}</style>", "u + .body .gmail { left: 0; }"),
        ('<style>.x{color:red}</style><STYLE media="print">.x{left:0}</STYLE>', '<style media="print">.x{left:0}'),
        (
            "<style media='all'>.x{color:red}</style><style media='(max-width: 600px)'>.x{left:0}</style>",
            '<style media="(max-width: 600px)">.x{left:0}',
        ),
        (
            "<style media='screen, print'>.x{color:red}</style><style type='text/less'>.x{left:0}</style>",
            '<style type="text/less">.x{left:0}',
        ),
        ('<link rel=stylesheet href="https://f.example/a.css"><style>.x{color:red}</style>', "https://f.example/a.css"),
        ("<!--[if mso]><style>.x{left:0}</style><![endif]--><style>.x{color:red}</style>", "<style>.x{left:0}</style>"),
    ],
)
async def test_rules_that_no_attribute_can_hold_stay(tmp_path: Path, sheet: str, kept: str) -> None:
    """css-inline discards them by default, and takes a sheet for print as one that always applies."""
    _write(tmp_path, {"t.html": f'{sheet}<p class="x">Hello</p>'})
    html = (await TemplateRenderer([tmp_path], debug=False, inline_css=True).render("t.html")).html or ""
    assert kept in html
    assert '<p class="x" style="color: red;' in html
    assert "left" not in html.split("<p ", 1)[1]
    assert "data-css-inline" not in html


@pytest.mark.parametrize("count", [300, 12_000, 1_000_000])
async def test_html_that_nests_too_deep_is_not_inlined(tmp_path: Path, count: int) -> None:
    """css-inline works by recursion; without this bound a loop without ``</div>`` ended the process."""
    _write(tmp_path, {"t.html": "<style>p{color:red}</style>\n{{ rows }}"})
    renderer = TemplateRenderer([tmp_path], debug=False, inline_css=True)
    told = r"250 deep at line 2, 251 of them <div>: close the elements, or turn EMAIL\[\"inline_css\"\] off"
    with pytest.raises(TemplateFailed, match=told):
        await renderer.render("t.html", {"rows": Markup("<div>") * count})


async def test_html_that_nests_as_newsletters_do_is_inlined_in_a_small_thread(tmp_path: Path) -> None:
    nested = "<div>" * 240 + "<p>x</p>" + "</div>" * 240
    _write(tmp_path, {"t.html": f"<style>p{{color:red}}</style>{nested}"})
    renderer = TemplateRenderer([tmp_path], debug=False, inline_css=True)
    await renderer.prepare()
    before = threading.stack_size(512 * 1024)
    try:
        thread = ThreadPoolExecutor(1)
        rendered = thread.submit(asyncio.run, renderer.render("t.html")).result()
        thread.shutdown()
    finally:
        threading.stack_size(before)
    assert '<p style="color: red;">x</p>' in (rendered.html or "")


async def test_markdown_that_nests_too_deep_is_an_error_of_the_template(tmp_path: Path) -> None:
    _write(tmp_path, {"t.md": "- " * 3_000 + "x"})
    with pytest.raises(TemplateFailed, match="nests lists or quotations too deep"):
        await TemplateRenderer([tmp_path], debug=False).render("t.md")


@pytest.mark.parametrize(
    "attribute",
    ["href={{ v }}", "href=https://shop.example/o/{{ v }}", "href= 'a'b={{ v }}", "href=a{% if v %}{{ v }}{% endif %}"],
)
async def test_values_in_attributes_without_quotation_marks_are_refused(tmp_path: Path, attribute: str) -> None:
    _write(tmp_path, {"t.html": f"<p>\n{{% if 2 > 1 %}}\n<a title='>' {attribute}>go</a>{{% endif %}}"})
    with pytest.raises(TemplateFailed, match="line 3: an attribute's value is not in quotes"):
        await TemplateRenderer([tmp_path], debug=False).render("t.html", {"v": "7 onclick=alert(1)"})


@pytest.mark.parametrize(
    "tag",
    [
        "<a {{ v }}>",
        "<a data-{{ v }}=1>",
        "<h{{ v }}>",
        "<{{ v }}>",
        "<p title='x'{{ v }}>",
        "<!--[if mso]><td {{ v }}><![endif]-->",
        "<a {{ v|safe|upper }}>",
        "<a {{ 'safe' if v }}>",
    ],
)
async def test_values_that_would_name_a_tag_or_an_attribute_are_refused(tmp_path: Path, tag: str) -> None:
    _write(tmp_path, {"t.html": f"<p>\n{tag}x"})
    with pytest.raises(TemplateFailed, match="line 2: a value names a tag or an attribute"):
        await TemplateRenderer([tmp_path], debug=False).render("t.html", {"v": "7 onclick=alert(1)"})


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("<a{{ {'title': v}|xmlattr }}>x", '<a title="a b">x'),
        ("<a {{ 'title=&quot;'|safe }}>x", "<a title=&quot;>x"),
        ("<h{{ '2'|int(1) }}>x", "<h2>x"),
        ("<a {% if v %}hidden{% endif %}>{{ v }}", "<a hidden>a b"),
        ("a < b {{ v }} <!-- {{ v }} -->", "a < b a b <!-- a b -->"),
    ],
)
async def test_names_in_tags_may_be_trusted_or_written(tmp_path: Path, source: str, html: str) -> None:
    _write(tmp_path, {"t.html": source})
    assert (await TemplateRenderer([tmp_path], debug=False).render("t.html", {"v": "a b"})).html == html


_WITHOUT = """
import asyncio, logging, sys
from pathlib import Path
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
sys.modules[sys.argv[1]] = None
from openviper.core.email.templates import TemplateRenderer
async def main():
    renderer = TemplateRenderer([Path(sys.argv[2])], debug=True, inline_css=sys.argv[3] == "css")
    if sys.argv[3] == "no Markdown":
        await renderer.prepare()
        print((await renderer.render("t.html")).html)
        return
    for _ in range(2):
        print((await renderer.render("t.md", {"v": "<b> [x](http://evil) # *", "u": "javascript:x"})).html)
asyncio.run(main())
"""


async def _without(module: str, folder: Path, option: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WITHOUT, module, str(folder), option,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    return (await process.communicate())[0].decode()


async def test_without_python_markdown_nothing_is_said_until_there_is_markdown(tmp_path: Path) -> None:
    _write(tmp_path, {"t.html": "<p>Hi</p>"})
    assert await _without("markdown", tmp_path, "no Markdown") == "<p>Hi</p>\n"


async def test_without_python_markdown_headings_paragraphs_and_links_are_converted(tmp_path: Path) -> None:
    _write(tmp_path, {"t.md": "# Hi {{ v }} #\ntext\nmore {{ v }}\n\n[go](https://e.com) [no]({{ u }}) <i> <{{ u }}>"})
    output = await _without("markdown", tmp_path)
    assert output.count("pip install 'openviper-email[markdown]'") == 1
    assert (
        output.count(
            "<h1>Hi &lt;b&gt; [x](http://evil) # *</h1>\n<p>text more &lt;b&gt; [x](http://evil) # *</p>\n"
            '<p><a href="https://e.com">go</a> <a>no</a> &lt;i&gt; &lt;javascript:x&gt;</p>'
        )
        == 2
    )


async def test_without_css_inline_the_extra_is_named(tmp_path: Path) -> None:
    _write(tmp_path, {"t.md": "x"})
    assert "pip install 'openviper-email[css]'" in await _without("css_inline", tmp_path, "css")


@pytest.mark.parametrize("name", ["alt", "ALT", "title", "data-title", "style"])
async def test_a_text_for_people_is_no_target_and_hides_none(tmp_path: Path, name: str) -> None:
    _write(tmp_path, {"t.html": f'<img {name}="Tea: black &amp; green"><a {name}=x href="{{{{ url }}}}">go</a>'})
    renderer = TemplateRenderer([tmp_path], debug=False)
    kept = await renderer.render("t.html", {"url": "https://shop.test/"})
    assert kept.html == f'<img {name}="Tea: black &amp; green"><a {name}=x href="https://shop.test/">go</a>'
    taken_out = await renderer.render("t.html", {"url": "javascript:alert(1)"})
    assert taken_out.html == f'<img {name}="Tea: black &amp; green"><a {name}=x>go</a>'
