"""How declarations of ``style`` attributes are read."""

import pytest

from openviper.markup import declarations, is_hidden, is_zero


@pytest.mark.parametrize(
    ("style", "values"),
    [
        ("", {}),
        ("color", {}),
        ("color:", {}),
        (" COLOR : Red ;; margin:0 AUTO", {"color": "red", "margin": "0 auto"}),
        ("color:red;color:blue", {"color": "blue"}),
        ("color:red!important;color:blue", {"color": "red"}),
        ("color:red ! IMPORTANT;color:blue!important", {"color": "blue"}),
        ("/*color:red;*/margin:/* : ; */0", {"margin": "0"}),
        ("margin:0;/* color:red", {"margin": "0"}),
        ('a:\'x;b:y\';c:"\\";d:z";e:f', {"a": "''", "c": '""', "e": "f"}),
        ("a:url(x;b:y);c:d", {"a": "url()", "c": "d"}),
        ("a:url('x)y;b:z');c:d", {"a": "url()", "c": "d"}),
    ],
)
def test_declarations_are_read_by_name_and_the_last_one_wins(style: str, values: dict[str, str]) -> None:
    assert dict(declarations(style)) == values


@pytest.mark.parametrize("style", ["visibility:collapse", "max-height:0;overflow:hidden auto", "opacity:.0"])
def test_an_element_is_hidden_by_any_property_that_hides(style: str) -> None:
    assert is_hidden(style)


@pytest.mark.parametrize("style", ["", "border-collapse:collapse", "max-height:0;overflow:visible", "opacity:.01"])
def test_an_element_is_shown_otherwise(style: str) -> None:
    assert not is_hidden(style)


def test_a_zero_has_any_unit_and_no_other_digit() -> None:
    assert all(map(is_zero, ["0", "0px", "-0.00em", "+.0%", "00"]))
    assert not any(map(is_zero, ["", "auto", "0.5em", "10px", "0px 1px", ".", "px"]))
