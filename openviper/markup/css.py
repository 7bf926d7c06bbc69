"""Read the declarations of a ``style`` attribute, as far as they decide what a reader sees."""

import re
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["declarations", "is_hidden", "is_zero"]

# These may hold a semicolon or a colon that separates nothing: comments, strings, addresses and other parentheses.
_OPAQUE = re.compile(
    r"/\*(?:[^*]|\*(?!/))*+(?:\*/)?"
    r"|\"(?:[^\"\\]|\\.)*+\"?|'(?:[^'\\]|\\.)*+'?"
    r"|\((?:[^()\"']|\"[^\"]*+\"|'[^']*+')*+\)?",
    re.DOTALL,
)
_ZERO = re.compile(r"[+-]?(?:0+(?:\.0*)?|\.0+)(?:[a-z]+|%)?")
_CUT_OFF = ("overflow", "overflow-x", "overflow-y")
_EXTENTS = ("max-height", "height", "max-width", "width")


def declarations(style: str) -> Mapping[str, str]:
    """Return the values of ``style`` by property, all in lower case; strings and parentheses come without content.

    The last declaration of a property wins, but an ``!important`` one beats those that are not (CSS Cascade 4,
    section 6). Comments and declarations without a value do not count.
    """
    values: dict[str, str] = {}
    important: set[str] = set()
    for declaration in _OPAQUE.sub(_without_content, style).lower().split(";"):
        name, colon, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not value:
            continue
        before, mark, flag = value.rpartition("!")
        if mark and flag.strip() == "important":
            value = before.rstrip()
            important.add(name)
        elif name in important:
            continue
        values[name] = value
    return MappingProxyType(values)


def is_hidden(style: str) -> bool:
    """True if an element with this ``style`` attribute takes no part in what a reader sees.

    That is ``display: none``, ``visibility: hidden`` or ``collapse``, ``opacity: 0``, ``mso-hide: all``, and a height
    or width of 0 whose overflow is cut off. A font size of 0 is not among them: elements inside may have another one.
    """
    values = declarations(style)
    if (
        values.get("display") == "none"
        or values.get("visibility") in ("hidden", "collapse")
        or values.get("mso-hide") == "all"
        or is_zero(values.get("opacity", ""))
    ):
        return True
    return any(is_zero(values.get(name, "")) for name in _EXTENTS) and any(
        values.get(name, "").split(" ")[0] in ("hidden", "clip") for name in _CUT_OFF
    )


def is_zero(value: str) -> bool:
    """True if ``value`` is the number or length 0, in whatever unit."""
    return _ZERO.fullmatch(value) is not None


def _without_content(match: re.Match[str]) -> str:
    opening = match[0][0]
    return {"/": "", "(": "()"}.get(opening, opening * 2)
