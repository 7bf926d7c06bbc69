"""Find text that cannot be read in a client that lacks the feature its colours, or those behind it, are given by."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from openviper.markup.stylesheet import Declaration

__all__ = ["CLEAR", "PAGE", "Colours"]

_LIGHT, _DARK, _BETWEEN, CLEAR = "light", "dark", "between", "clear"
_LIGHT_FROM, _DARK_BELOW = 0.7, 0.3
_LIGHT_NAMES = """
    white snow ivory whitesmoke ghostwhite floralwhite aliceblue azure mintcream honeydew lightyellow beige linen
    seashell oldlace cornsilk lavender lightcyan gainsboro
"""
_DARK_NAMES = "black navy midnightblue darkblue maroon darkslategray darkslategrey indigo darkgreen darkred"
_NAMES = {**dict.fromkeys(_LIGHT_NAMES.split(), _LIGHT), **dict.fromkeys(_DARK_NAMES.split(), _DARK)}
_COLOUR = re.compile(
    r"#([0-9a-f]{3,8})(?![\w-])|rgb\(\s*(\d{1,3})[ ,]+(\d{1,3})[ ,]+(\d{1,3})\s*\)|(?<![\w#-])([a-z]+)(?![\w(-])"
)
# What only a feature gives, by the feature.
_GIVEN_BY = {
    "css-background-image": re.compile(r"url\("),
    "css-conic-gradient": re.compile(r"conic-gradient\("),
    "css-function-light-dark": re.compile(r"light-dark\("),
    "css-linear-gradient": re.compile(r"linear-gradient\("),
    "css-modern-color": re.compile(r"(?<![\w-])(?:ok)?l(?:ab|ch)\("),
    "css-radial-gradient": re.compile(r"radial-gradient\("),
    "css-rgba": re.compile(r"(?<![\w-])rgba\("),
    "css-variables": re.compile(r"(?<![\w-])var\("),
}
_CALL = re.compile(r"(?<![\w-])(?!rgb\()[\w-]+\((?:[^()]|\([^()]*+\))*+\)?")
_BACKGROUNDS = frozenset({"background", "background-color", "background-image"})


class Colours(NamedTuple):
    """How light an element's text and background are for a client that lacks certain features.

    ``text_lacks`` and ``background_lacks`` name the features that would give other colours. ``text`` is ``CLEAR`` where
    it is transparent and shows the background that is clipped to it; ``text_lacks`` names what that needs.
    """

    text: str
    background: str
    text_lacks: frozenset[str] = frozenset()
    background_lacks: frozenset[str] = frozenset()

    def inside(self, declarations: Collection[Declaration], attributes: Mapping[str, str]) -> "Colours":
        """Return the colours of an element inside that has these declarations and attributes."""
        colours = self
        if "background" in attributes:
            colours = colours._replace(background_lacks=frozenset({"html-background"}))
        if tone := _tone(attributes.get("bgcolor", "")):
            colours = colours._replace(background=tone)
        if tone := _tone(attributes.get("color", "")):
            colours = colours._replace(text=tone, text_lacks=frozenset())
        for declaration in declarations:
            value = declaration.value.lower()
            lacks = frozenset(slug for slug, pattern in _GIVEN_BY.items() if pattern.search(value))
            tone = _tone(_CALL.sub(" ", value))
            if declaration.name == "color":
                colours = colours._replace(text=tone or colours.text, text_lacks=lacks)
            elif declaration.name in _BACKGROUNDS:
                kept = colours.background_lacks if declaration.name != "background" and not tone else frozenset()
                colours = colours._replace(background=tone or colours.background, background_lacks=lacks | kept)
        if _clipped_to_text(declarations):
            lacks = frozenset() if _has_plain_background(declarations) else colours.background_lacks
            colours = colours._replace(text=CLEAR, text_lacks=lacks | {"css-background-clip"})
        return colours

    def unreadable_without(self) -> frozenset[str]:
        """Return the features without which the text is as light or as dark as its background.

        If both colours are given by features, it is those of the background: the text may be right without them.
        """
        if self.text == CLEAR:
            return self.text_lacks
        if self.text == self.background != _BETWEEN:
            return self.background_lacks or self.text_lacks
        return frozenset()


PAGE = Colours(_DARK, _LIGHT)
"""A message without any colours: dark text on a light page."""


def _clipped_to_text(declarations: Iterable[Declaration]) -> bool:
    """True if the background shows through transparent letters, whose colour nothing else gives."""
    last = {declaration.name.removeprefix("-webkit-"): declaration.value.lower() for declaration in declarations}
    return last.get("color") == "transparent" and last.get("background-clip") == "text"


def _has_plain_background(declarations: Iterable[Declaration]) -> bool:
    return any(
        declaration.name in _BACKGROUNDS and _tone(_CALL.sub(" ", declaration.value.lower()))
        for declaration in declarations
    )


def _tone(value: str) -> str:
    """Return how light the first colour in ``value`` is; empty if there is none."""
    for match in _COLOUR.finditer(value.lower()):
        digits, *channels, name = match.groups()
        if name:
            if name in _NAMES:
                return _NAMES[name]
            continue
        if digits:
            if len(digits) in (3, 4):
                digits = "".join(digit * 2 for digit in digits)
            if len(digits) < 6:
                continue
            channels = [str(int(digits[at : at + 2], 16)) for at in (0, 2, 4)]
        red, green, blue = (int(channel) / 255 for channel in channels)
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        return _LIGHT if light >= _LIGHT_FROM else _DARK if light < _DARK_BELOW else _BETWEEN
    return ""
