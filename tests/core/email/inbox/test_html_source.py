"""HTML as text with line numbers: nothing of it is lost, and nothing of it is markup."""

import re
import time
from html import unescape

import pytest

from openviper.core.email.inbox.html_source import read_tokens, source_lines

HTML = [
    "",
    "Hello & <b class=x>you</b>",
    '<!doctype html>\n<!-- <b> --><p style="color: red" hidden id=\'a"b\'>1 < 2 &amp; 3</p>',
    "<style>p > b { color: red }</style><script>if (a < b) '</p>'</script>",
    '<img src=x onerror=alert(1)><a href="',
    "<svg><![CDATA[<b>]]></svg></ b><?php ?>",
    "<p\n  class\n  = a\n>\n\n</p >",
]


@pytest.mark.parametrize("html", HTML)
def test_the_tokens_are_the_html_again(html: str) -> None:
    assert "".join(text for _, text in read_tokens(html)) == html


@pytest.mark.parametrize("html", HTML)
def test_each_line_is_the_text_of_its_line(html: str) -> None:
    lines, complete = source_lines(html.replace("\n", "\r\n"))
    assert [unescape(re.sub(r"</?span[^>]*>", "", line)) for line in lines] == html.split("\n")
    assert complete
    for line in lines:
        assert set(re.findall(r"<[^>]*>", line)) <= {
            "</span>",
            *(f'<span class="{kind}">' for kind in ("tag", "attribute", "value", "comment")),
        }


def test_tags_attributes_values_and_comments_are_marked() -> None:
    (line,), _ = source_lines('<a href="x">b</a><!--c-->')
    assert line == (
        '<span class="tag">&lt;a</span><span class="attribute"> href=</span><span class="value">&#34;x&#34;</span>'
        '<span class="tag">&gt;</span>b<span class="tag">&lt;/a</span><span class="tag">&gt;</span>'
        '<span class="comment">&lt;!--c--&gt;</span>'
    )


def test_of_very_long_html_the_beginning_is_shown() -> None:
    begun = time.thread_time()
    lines, complete = source_lines("<p" + " a=b" * 200_000)
    assert not complete
    assert sum(map(len, lines)) > 300_000
    assert time.thread_time() - begun < 10
