"""Control characters, values in errors, and suggestions."""

import ast
import re
import sys
import unicodedata
from pathlib import Path

import pytest

import openviper
from openviper.text import (
    CONTROLS,
    control_character,
    counted,
    cut,
    find_urls,
    one_line,
    shown,
    suggestion,
    without_quotes,
)

PACKAGE = Path(openviper.__file__).parent


def test_control_characters_are_those_of_unicode() -> None:
    """Categories Cc, Zl, Zp and Cs, no more and no less."""
    everything = [chr(number) for number in range(sys.maxunicode + 1)]
    expected = [character for character in everything if unicodedata.category(character) in {"Cc", "Zl", "Zp", "Cs"}]
    assert re.findall(f"[{CONTROLS}]", "".join(everything)) == expected
    assert [character for character in expected if control_character(f"a{character}b") is None] == []


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("", None),
        ("Grüße 👩\u200d💻", None),
        ("a\rb", "CR"),
        ("a\nb\r", "LF"),
        ("\0", "NUL"),
        ("\t", "tab"),
        ("\x85", "the character U+0085"),
        ("\u2028", "the character U+2028"),
        ("\ud800", "the character U+D800"),
    ],
)
def test_the_first_control_character_is_named(value: str, name: str | None) -> None:
    assert control_character(value) == name


def test_one_line_has_a_space_for_each_run() -> None:
    assert one_line("\r\n451 try\r\n\r\nlater\x1b[2J\u2028\ud800\n") == "451 try later [2J"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("orders.csv", "'orders.csv'"),
        ("a\nb", r"'a\nb'"),
        ("x" * 80, f"'{'x' * 80}'"),
        ("x" * 81, f"'{'x' * 80}'..."),
        ("\0" * 80, "'" + r"\x00" * 39 + r"\x0" + "..."),
        (b"x" * 10_000, f"b'{'x' * 80}'..."),
        (None, "None"),
        (25, "25"),
        ([1, 2, 3], "[1, 2, 3]"),
        ({"a": "b"}, "{'a': 'b'}"),
    ],
)
def test_a_value_is_shown_short(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_path_is_shown_whole_up_to_its_own_length() -> None:
    assert shown("p" * 200, whole=200) == f"'{'p' * 200}'"
    assert shown("p" * 201, whole=200) == f"'{'p' * 80}'..."


class Rude:
    """Its ``repr`` fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    [
        "\U0010ffff" * 5000,
        "\ud800" * 5000,
        [["x" * 500] * 50] * 50,
        {f"{number}" * 50: "y" * 500 for number in range(500)},
        10**5000,
        Path("/" + "p" * 5000),
        Rude(),
        bytearray(5000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_is_shown_longer_than_two_lines(value: object) -> None:
    assert len(shown(value)) <= 163
    assert shown(value).isprintable()


def test_cut_text_ends_with_dots() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "abc..."


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hots", "; did you mean 'host'?"),
        ("HOST", "; did you mean 'host'?"),
        ("consolebackend", "; did you mean 'ConsoleBackend'?"),
        ("data", "; did you mean 'content'?"),
        ("zzz", "; known: host"),
        ("host" * 5000, "; known: host"),
        (7, "; known: host"),
    ],
)
def test_the_nearest_name_is_suggested(name: object, text: str) -> None:
    known = ("host", "port", "content", "ConsoleBackend")
    assert suggestion(name, known, aliases={"data": "content"}, otherwise="known: host") == text


def test_nothing_is_said_where_nothing_is_near() -> None:
    assert suggestion("zzz", ("host",)) == ""


def test_no_text_of_the_package_shows_a_value_whole() -> None:
    """``{value!r}`` of what a caller gave can be a whole file; ``shown(value)`` is short."""
    exempt = {"testing/report.py", "text.py", "lazy.py"}  # a failed assertion shows what it compares
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if str(file.relative_to(PACKAGE)) not in exempt
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FormattedValue) and node.conversion == ord("r")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("illegal status line: bytearray(b'Anna M.')", "illegal status line: ..."),
        ("illegal header line: b'Anna'", "illegal header line: ..."),
        ("invalid literal for int() with base 10: 'Anna\\'s \"house\"'", "invalid literal for int() with base 10: ..."),
        ('could not convert string to float: "it\'s"', "could not convert string to float: ..."),
        ("time data 'Anna' does not match format '%Y'", "time data ..."),
        ("unknown command `SET`, with args: `a` `Anna`", "unknown command ..."),
        ("two\n'lines\nof Anna'", "two\n..."),
        ("nothing is quoted", "nothing is quoted"),
    ],
)
def test_quoted_values_of_a_foreign_error_are_dropped(text: str, safe: str) -> None:
    assert without_quotes(text) == safe


def test_a_counted_noun_is_singular_for_one_alone() -> None:
    assert [counted(number, "attempt") for number in (0, 1, 2)] == ["0 attempts", "1 attempt", "2 attempts"]


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("See https://shop.example/a, or <http://b.example>.", ["https://shop.example/a", "http://b.example"]),
        ("(https://shop.example/a)).", ["https://shop.example/a"]),
        ("https://shop.example/wiki/Ink_(iron)", ["https://shop.example/wiki/Ink_(iron)"]),
        ("[https://shop.example/a[1]]*", ["https://shop.example/a[1]"]),
        ("ftp://shop.example shop.example javascript:alert(1)", []),
    ],
)
def test_urls_are_found_without_the_punctuation_around_them(text: str, urls: list[str]) -> None:
    found = list(find_urls(text))
    assert [each.url for each in found] == urls
    assert all(text[each.start : each.end].startswith(each.url) for each in found)
