"""Tell which declarations hide content, show it, or add text to it."""

import re
from collections.abc import Iterable

from openviper.markup import is_zero
from openviper.markup.stylesheet import Declaration

__all__ = ["adds_text", "begins_hidden", "hides", "shows"]

_STRING = re.compile(r"\"((?:[^\"\\]|\\.)*+)\"|'((?:[^'\\]|\\.)*+)'", re.DOTALL)
_ESCAPE = re.compile(r"\\[0-9a-f]{1,6} ?", re.IGNORECASE)


def begins_hidden(declarations: Iterable[Declaration]) -> bool:
    """True if an element with these declarations is invisible until an animation changes them."""
    return any(
        (name == "opacity" and is_zero(value)) or (name == "visibility" and value == "hidden")
        for name, value, _ in declarations
    )


def adds_text(declaration: Declaration) -> bool:
    """True for a ``content`` with letters or digits; symbols and blanks are decoration."""
    if declaration.name != "content":
        return False
    texts = ("".join(match) for match in _STRING.findall(declaration.value))
    return "attr(" in declaration.value or any(letter.isalnum() for text in texts for letter in _ESCAPE.sub("", text))


def hides(declaration: Declaration) -> bool:
    """True for a declaration that hides an element."""
    name, value, _ = declaration
    value = value.lower()
    return (
        (name == "display" and value == "none")
        or (name == "visibility" and value == "hidden")
        or (name in ("opacity", "max-height") and is_zero(value))
    )


def shows(declaration: Declaration) -> bool:
    """True for a declaration that shows an element which another has hidden."""
    name, value, _ = declaration
    value = value.lower()
    return (
        (name == "display" and value != "none")
        or (name == "visibility" and value == "visible")
        or (name in ("opacity", "max-height") and not is_zero(value))
    )
