"""No document that a native parser is given nests deeper than said, by that parser's own count."""

import random
import re

import pytest
from selectolax.lexbor import LexborHTMLParser

from openviper.markup import DEEPEST, MOST_ATTRIBUTES, describe_excess

_ROWS = "<tr><td><p>a<br><b>b</b><td><ul><li>c<li>d</ul></tr>"


@pytest.mark.parametrize(
    "html",
    [
        "",
        "<div>" * 200 + "x" + "</div>" * 200,
        "<table><tr><td>" * 60 + "x" + "</td></tr></table>" * 60,
        "<ul><li>" * 100 + "x" + "</li></ul>" * 100,
        f"<table>{_ROWS * 2_000}</table>",
        "<p>one<p>two" * 2_000,
        "<dl>" + "<dt>a<dd>b" * 2_000 + "</dl>",
        "<div><p>a <b>b <i>c</b></i> <font>d</p></div>" * 50,
        "<td><b><div>x</td>" * 40,
        "<table><tr><td><b><font><div>never closed</table>" * 2_000,
        "<p>a<a href=x>b<a href=y>c</a></p>" * 2_000,
        '<svg width=1><title>t</title><g><path d="M0"/></g></svg>' * 2_000,
        "<select><option>a<option>b</select>" * 2_000,
        "<!--[if mso]><table><tr><td><![endif]-->" * 2_000,
        "<style>a > b {} </style><script>'<div>'</script>" * 2_000,
        "<input><img><br/><hr>" * 2_000,
    ],
)  # fmt: skip
def test_what_newsletters_have_may_be_parsed(html: str) -> None:
    assert describe_excess(html) is None


_UNCLOSED = ["div", "b", "font", "span", "x-y", "table", "table><tr><td", "ul><li", "blockquote", "a><div", "svg><g"]
_UNCLOSED += ["b><p", "i></p", "li><dd", "form", "object", "template", "noscript", "button><p", "select", "frameset"]


@pytest.mark.parametrize("tags", _UNCLOSED)
def test_what_is_never_closed_is_too_much_unless_a_parser_closes_it(tags: str) -> None:
    html = f"<{tags} id=1>" * 20_000
    excess = describe_excess(html)
    assert excess is not None or _depth(f"<{tags} id=1>" * 500) < 20


def test_the_excess_names_element_and_line() -> None:
    html = "<h1>Orders</h1>\n" + "<div class=order>\n<p>one</p>\n" * 12_000
    assert describe_excess(html) == f"elements nest more than {DEEPEST} deep at line 501, 250 of them <div>"
    many = "\n<a " + "x " * (MOST_ATTRIBUTES + 1) + ">"
    assert describe_excess(many) == f"<a> in line 2 has more than {MOST_ATTRIBUTES} attributes"
    unclear = "<select>\n<div>" + "<br>" * 100
    assert describe_excess(unclear) == "<div> in line 2 stands where parsers differ in what it nests in"


# Each hides open elements from a count that only adds start tags and subtracts end tags.
_HIDING = [
    "<div><table><tr><td></div></table>",
    "<div><object></div></object>",
    "<form><table><td></form></table></form>",
    "<div><select></div></select>",
    "<td><div></td>",
    "<table></table><div></table>",
    "<table><td><col><div></td></table>",
    "<b><b><b><b></b></b></b><div></b></div>",
    "<b id=x><div><div><div><div><div><div><div><div></b></div></div></div></div></div></div></div></div>",
    "<p><b id=x></p>",
    "<span><span></span><li></span>",
    "<li/><dd/>",
    "<div><svg></div></svg>",
    "<svg><a></svg><a></a></a>",
    "<svg><style><div></style></svg></div>",
    "<select><style></select><div></style></div>",
    "<div><noscript></div></noscript>",
    "<noscript><!-- </noscript><div> --></noscript>",
    "<![CDATA[><div>]]></div>",
    "<span><section><div></section><p></div></span>",
]


@pytest.mark.parametrize("loop", _HIDING)
def test_end_tags_that_a_parser_ignores_hide_nothing(loop: str) -> None:
    numbered = (re.sub("=x", f"={number}", loop) for number in range(2_000))
    html = "".join(numbered)
    assert describe_excess(html) is not None or _depth(html) <= DEEPEST + 10


_NAMES = ["div", "p", "b", "i", "a", "font", "span", "ul", "li", "ol", "dl", "dd", "dt", "table", "tr", "td", "th"]
_NAMES += ["tbody", "caption", "colgroup", "col", "svg", "g", "math", "mi", "h1", "h2", "button", "form", "select"]
_NAMES += ["option", "optgroup", "object", "em", "section", "address", "blockquote", "pre", "nobr", "title", "style"]
_NAMES += ["textarea", "noscript", "center", "x-y", "rt", "ruby", "desc", "img", "br", "input", "marquee", "thead"]


@pytest.mark.parametrize("seed", range(300))
def test_what_may_be_parsed_nests_no_deeper_in_the_parser(seed: int) -> None:
    """A loop of random tags, long enough to pass the bound if each turn leaves one element open."""
    generator = random.Random(seed)
    names = generator.sample(_NAMES, generator.randrange(2, 9))
    html = "".join(_piece(generator, names) for _ in range(generator.choice([0, 4])))
    html += "".join(_piece(generator, names) for _ in range(generator.randrange(3, 14))) * 400
    if describe_excess(html) is None:
        assert _depth(html) <= DEEPEST + 10


def _piece(generator: random.Random, names: list[str]) -> str:
    name = generator.choice(names)
    attribute = generator.choice(["", f" id={generator.randrange(9)}", "/", " color=x"])
    return generator.choices([f"<{name}{attribute}>", f"</{name}>", "x", "<!--x>-->"], [50, 35, 12, 3])[0]


def _depth(html: str) -> int:
    node = LexborHTMLParser(html).root
    assert node is not None
    deepest = depth = 0
    while True:
        deepest = max(deepest, depth)
        if node.first_child is not None:
            node = node.first_child
            depth += 1
            continue
        while node.next is None:
            parent = node.parent
            depth -= 1
            if parent is None or depth <= 0:
                return deepest
            node = parent
        node = node.next
