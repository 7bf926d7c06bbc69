"""What a terminal would obey is escaped, and NO_COLOR is respected."""

import io
import re

import pytest

from openviper.terminal import colour, escape, is_terminal


@pytest.mark.parametrize(
    "unsafe",
    [
        "\x1b[2J",
        "\x07",
        "\x00",
        "\x7f",
        "\x9b2J",
        "\x85",
        "\u202e",
        "\u2066",
        "\u200f",
        "\u061c",
        "\u180e",
        "\u200b",
        "\u2060",
        "\u206a",
        "\ufeff",
        "\ufff9",
        "\u2028",
        "\ud800",
        "\r",
    ],
)
@pytest.mark.parametrize("body", [False, True])
def test_what_drives_a_terminal_is_shown_escaped(unsafe: str, body: bool) -> None:
    shown = escape(f"a{unsafe}b", body=body)
    assert unsafe[0] not in shown
    assert shown.startswith("a\\")
    assert shown.endswith("b")


@pytest.mark.parametrize("harmless", ["Grüße", "世界", "👩\u200d💻", "שלום", "مرحبا", "a\u00adb"])
def test_other_text_is_shown_as_it_is(harmless: str) -> None:
    assert escape(harmless) == harmless


def test_line_ends_and_tabs_stay_in_a_body_only() -> None:
    assert escape("a\r\n\tb\n", body=True) == "a\n\tb\n"
    assert escape("a\n\tb") == "a\\n\\tb"


def test_every_control_character_is_escaped() -> None:
    """C0, DEL and C1; none of them reaches the terminal."""
    controls = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
    assert escape(controls).isprintable()
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", escape(controls, body=True)) == []


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("", None), ("1", False), ("0", False)])
def test_no_color_of_any_value_turns_colours_off(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool | None
) -> None:
    """https://no-color.org: present and not an empty string, whatever its value."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    assert colour() is expected


def test_what_cannot_say_is_no_terminal() -> None:
    assert not is_terminal(io.StringIO())
    assert not is_terminal(object())  # type: ignore[arg-type]
