"""Tags and attributes are those that a browser's parser finds."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from openviper.markup import attribute_text, attributes, read_tags
from openviper.markup.tags import lower


def tags(html: str) -> list[tuple[str, dict[str, str]]]:
    found = []
    for tag in read_tags(html):
        if tag.kind == "start" and tag.complete:
            values: dict[str, str] = {}
            for attribute in attributes(html, tag):
                values.setdefault(attribute.name, attribute_text(attribute.value))
            found.append((tag.name, values))
    return found


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<a HREF='x' href=y>", [("a", {"href": "x"})]),
        ("<a href=x/>y", [("a", {"href": "x/"})]),
        ("<a b = 'c'd==e =f>", [("a", {"b": "c", "d": "=e", "=f": ""})]),
        ("<a title='>' href=\"x\"/b>", [("a", {"title": ">", "href": "x", "b": ""})]),
        ("<a b=>c", [("a", {"b": ""})]),
        ("<a\x0bb c>", [("a\x0bb", {"c": ""})]),
        ("<a b\0=\0>", [("a", {"b\ufffd": "\ufffd"})]),
        ("<lin\u212a><\u017ftyle>", [("lin\u212a", {})]),
        ("a < b <1> </ c> <d>", [("d", {})]),
        ("<a href='x", []),
        ("<!-- <a> --><!--><b><!---><c><!-- --!><d><!-- <e>", [("b", {}), ("c", {}), ("d", {})]),
        ("<!-- --! > <a> -->", []),
        ("<?x <a> <!doctype html '>' <b>", [("b", {})]),
        ("<![CDATA[ <a> ]]>", []),
        ("<svg><![CDATA[ > <a> ]]><b>", [("svg", {}), ("b", {})]),
        ("<style> <a> </stylex><b></STYLE/><c>", [("style", {}), ("c", {})]),
        ("<title><!-- </title><a>", [("title", {}), ("a", {})]),
        ("<svg><style><a></style></svg><style><b>", [("svg", {}), ("style", {}), ("a", {}), ("style", {})]),
        ("<svg><p><style><a>", [("svg", {}), ("p", {}), ("style", {})]),
        ("<svg><desc><style><a>", [("svg", {}), ("desc", {}), ("style", {})]),
        ("<script><!--<script></script><a>--></script><b>", [("script", {}), ("b", {})]),
        ("<script><!--></script><a>", [("script", {}), ("a", {})]),
        ("<noscript><a>", [("noscript", {}), ("a", {})]),
        ("<xmp><a></xmp><plaintext><b></plaintext><c>", [("xmp", {}), ("plaintext", {})]),
        ("<a b='&amp;&lt&copy=1&copyx&#65&notit;&unknown;'>", [("a", {"b": "&<&copy=1&copyxA&notit;&unknown;"})]),
    ],
)  # fmt: skip
def test_tags_are_found_as_browsers_find_them(html: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert tags(html) == found


def test_noscript_is_text_where_scripts_run() -> None:
    assert [tag.name for tag in read_tags("<noscript><a></noscript><b>", scripting=True)] == ["noscript"] * 2 + ["b"]


def test_a_tag_that_the_document_ends_in_is_marked() -> None:
    (tag,) = read_tags("x <a href='javascript:x")
    assert not tag.complete
    assert [attribute.name for attribute in attributes("x <a href='javascript:x", tag)] == ["href"]


@pytest.mark.parametrize("html", ["x <a b='c' d=e f>", "<a\n  b = c\td>"])
def test_positions_lead_back_to_the_document(html: str) -> None:
    (tag,) = read_tags(html)
    assert html[tag.start : tag.end].startswith("<a")
    for attribute in attributes(html, tag):
        written = html[attribute.value_start : attribute.end]
        assert written.strip("'") == attribute.value
        assert attribute.name in html[attribute.start : attribute.end]


_NAMES = ["div", "span", "b", "p", "a", "ul", "li", "x-y", "img", "br", "svg", "path", "g", "style", "script"]
_NAMES += ["textarea", "xmp", "iframe", "title", "math", "mi", "annotation-xml", "DIV", "lin\u212a", "noembed"]
_PIECES = ["<!--", "-->", "--!>", "<!-->", "<!--->", "<![CDATA[", "]]>", "<", "</", "</>", "<?x", "<!x", ">", "/", "'"]
_PIECES += [
    '"',
    "=",
    "\0",
    "&amp;",
    "&copy=1",
    "x",
    " ",
    "\t",
    "\f",
    "\v",
    "<script>",
    "</script>",
    "</script ",
    "</p>",
]
_PIECES += ["<style>", "</style>", "</STYLE/>", "</title>", "</textarea>", "</xmp>", "</iframe>", "</svg>", "<desc>"]
_PIECES += ["</desc>", "<foreignObject>", "<1>", "</noembed>", "</div>", "\u017f", "\u212a", "<SCRIPT/>", "<a title='"]
_VALUES = ["", "=1", "='v>'", '="w"', "=a/b", " = c", "=&copy=1", "='&amp;&lt'", "=&#x41;", "==", "="]

_attribute = st.tuples(
    st.sampled_from([" ", "/", "\n"]),
    st.sampled_from(["a", "B", "x:y", "'", "=", '"z', "\0"]),
    st.sampled_from(_VALUES),
).map("".join)
_tag = st.tuples(
    st.sampled_from(_NAMES), st.lists(_attribute, max_size=3).map("".join), st.sampled_from([">", "/>", " >", ""])
)
_document = st.lists(_tag | st.sampled_from(_PIECES), max_size=14)


@settings(max_examples=1_500, deadline=None)
@given(_document)
def test_generated_documents_have_the_tags_and_attributes_that_a_parser_finds(
    document: list[str | tuple[str, ...]],
) -> None:
    """Each tag has an id of its own, by which it is found again in the parser's tree."""
    pieces = enumerate(document)
    html = "<body>" + "".join(
        piece if isinstance(piece, str) else f"<{piece[0]} id={number}{piece[1]}{piece[2]}" for number, piece in pieces
    )
    ours = {values["id"]: (name, values) for name, values in tags(html) if "id" in values}
    assert ours == _parsed(html)


def _parsed(html: str) -> dict[str, tuple[str, dict[str, str]]]:
    root = LexborHTMLParser(html).root
    assert root is not None
    found = {}
    for node in root.traverse():
        values = {lower(name): value or "" for name, value in node.attributes.items()}
        if "id" in values:
            found[values["id"]] = (lower(node.tag or ""), values)
    return found


_MANY = 20_000
HOSTILE = {
    "less-thans": "<" * _MANY,
    "open tags": "<a " * _MANY,
    "names": "<a=" * _MANY,
    "open quotes": "<a '" * _MANY,
    "mixed quotes": "<a x=\"'<b y='\"" * _MANY,
    "comments": "<!--" * _MANY,
    "bogus comments": "<!x" * _MANY,
    "sections": "<svg>" + "<![CDATA[" * _MANY,
    "blanks": "<a" + " " * _MANY,
    "slashes": "<a" + "/" * _MANY,
    "equals signs": "<a " + "=" * _MANY,
    "attributes": "<a " + "x=1 " * _MANY + ">",
    "nesting": "<div>" * _MANY,
    "end tags": "</div>" * _MANY,
    "scripts": "<script><!--<script>" * _MANY,
    "titles": "<title>" * _MANY,
    "foreign": "<svg></g>" * _MANY,
}


def _steps(html: str) -> int:
    """Lines of Python that reading all tags and attributes of ``html`` runs through."""
    lines = 0

    def count(*_: object) -> object:
        nonlocal lines
        lines += 1
        return count

    tracing = sys.gettrace()
    sys.settrace(count)  # type: ignore[arg-type]
    try:
        for tag in read_tags(html):
            for _ in attributes(html, tag):
                pass
    finally:
        sys.settrace(tracing)
    return lines


@pytest.mark.parametrize("kind", HOSTILE)
def test_steps_grow_in_proportion_to_the_length(kind: str) -> None:
    html = HOSTILE[kind]
    part = html[: len(html) // 4]
    assert _steps(html) < 5 * _steps(part) + 5_000
