"""What .md templates become where python-markdown is not installed."""

import pytest

from openviper.core.email.templates.markdown import basic_html


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("", ""),
        ("# One #\n###### Six\n####### seven", "<h1>One</h1>\n<h6>Six</h6>\n<p>####### seven</p>"),
        ("a\nb\n\n\nc", "<p>a b</p>\n<p>c</p>"),
        ("text\n# Head\nmore", "<p>text</p>\n<h1>Head</h1>\n<p>more</p>"),
        ("[a & b](https://e.example/?x=1&y=2)", '<p><a href="https://e.example/?x=1&amp;y=2">a &amp; b</a></p>'),
        ('[a](x"onclick="y)', '<p><a href="x&quot;onclick=&quot;y">a</a></p>'),
        ("<b>raw</b> *x*", "<p>&lt;b&gt;raw&lt;/b&gt; *x*</p>"),
        ("#no heading", "<p>#no heading</p>"),
    ],
)
def test_headings_paragraphs_and_links(source: str, html: str) -> None:
    assert basic_html(source) == html


@pytest.mark.parametrize(
    "source", ["[" * 100_000, "# " * 50_000, "[a](" * 25_000, "\n" * 100_000, "# a " + "#" * 100_000]
)
def test_hostile_sources_are_converted_at_once(source: str) -> None:
    assert len(basic_html(source)) < 2 * len(source) + 20
