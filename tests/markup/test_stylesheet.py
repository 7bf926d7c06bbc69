"""How style sheets and ``style`` attributes are read."""

import pytest

from openviper.markup.stylesheet import Declaration, read_declarations, read_stylesheet


def rules(css: str) -> list[tuple[str, dict[str, str], tuple[str, ...]]]:
    return [
        (rule.prelude, {each.name: each.value for each in rule.declarations}, rule.inside)
        for rule in read_stylesheet(css).rules
    ]


@pytest.mark.parametrize(
    ("css", "found"),
    [
        ("", []),
        ("a{color:red}", [("a", {"color": "red"}, ())]),
        (" a , b {COLOR : Red ; ; x } ", [("a , b", {"color": "Red"}, ())]),
        ("a{color:red", [("a", {"color": "red"}, ())]),
        ("}a{}", [("a", {}, ())]),
        ("<!-- a{} -->", [("a", {}, ())]),
        ("@import url(a;b.css);a{}", [("@import url(a;b.css)", {}, ()), ("a", {}, ())]),
        ("@media x{a{b:c}}", [("a", {"b": "c"}, ("@media x",)), ("@media x", {}, ())]),
        (".a{b:c;& d{e:f}g:h}", [("& d", {"e": "f"}, (".a",)), (".a", {"b": "c", "g": "h"}, ())]),
        ("a/*{*/b{c/*:x*/:d}", [("a b", {"c": "d"}, ())]),
        ("a{b:\"};\";c:'\\'}'}", [("a", {"b": '"};"', "c": "'\\'}'"}, ())]),
        ("a{b:url(x;}y);c:url( 'z)' )}", [("a", {"b": "url(x;}y)", "c": "url( 'z)' )"}, ())]),
        ("a[b='{']{c:d}", [("a[b='{']", {"c": "d"}, ())]),
        ("a{--X: Y}", [("a", {"--X": "Y"}, ())]),
        ("a{b:'not closed\n}c{}", [("a", {"b": "'not closed"}, ()), ("c", {}, ())]),
    ],
)
def test_rules_are_read_with_their_declarations(css: str, found: list[object]) -> None:
    assert rules(css) == found


def test_a_rule_says_where_it_begins() -> None:
    css = "/* x */\n a{}\n@media x{\n  b{} }"
    assert {rule.prelude: css[rule.start :][:1] for rule in read_stylesheet(css).rules} == {
        "a": "a",
        "b": "b",
        "@media x": "@",
    }


@pytest.mark.parametrize(("css", "comments"), [("a{/**/}", True), ("/* x", True), ("<!-- a{} -->'/**/'", False)])
def test_comments_are_noticed(css: str, comments: bool) -> None:
    assert read_stylesheet(css).comments is comments
    assert read_declarations(css)[1] is comments


def test_declarations_keep_their_order_and_say_whether_they_are_important() -> None:
    assert read_declarations("color:red;margin:0 ! IMPORTANT;color:url(a;b)")[0] == (
        Declaration("color", "red", ""),
        Declaration("margin", "0", " ! IMPORTANT"),
        Declaration("color", "url(a;b)", ""),
    )


def test_a_style_attribute_ends_with_a_brace_that_opens_nothing() -> None:
    assert read_declarations("color:red}b{margin:0")[0] == (Declaration("color", "red", ""),)
