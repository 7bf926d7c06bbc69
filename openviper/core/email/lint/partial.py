"""Tell which uses of a feature keep within what clients with partial support show, as the notes of the data say."""

import re
from collections.abc import Mapping

__all__ = ["attribute_keeps_within", "declaration_keeps_within"]

_COLOUR = r"#[0-9a-f]{3,8}|[a-z]+"
_COMMAS = r"\(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*"
_VALUES = {
    slug: re.compile(pattern)
    for slug, pattern in {
        "css-background": _COLOUR,
        "css-border-radius": r"[^/]*",
        "css-font-size": r"(?:\d+\.?\d*|\.\d+)(?:px|pt)",
        "css-font-weight": r"normal|bold|400|[6-9]00",
        "css-overflow": r"hidden|visible",
        "css-rgb": rf"(?:[^(]|(?<!rgb)\(|(?<=rgb){_COMMAS}\))*",
        "css-rgba": rf"(?:[^(]|(?<!rgba)\(|(?<=rgba){_COMMAS},\s*[\d.]+%?\s*\))*",
        "css-text-align": r"left|right|center|justify",
    }.items()
}
# Elements on which a property, or an attribute, is not supported where its support is partial.
_NOT_ON = {
    "css-height": frozenset({"body", "div", "p", "span"}),
    "css-width": frozenset({"body", "div", "img", "p", "span"}),
    "html-align": frozenset({"img", "table"}),
    "html-lang": frozenset({"td"}),
}
_ONLY_ON = {"css-max-width": frozenset({"table"})}


def declaration_keeps_within(feature: str, value: str, element: str) -> bool:
    """True if this value is shown by clients with partial support; ``element`` is empty in a style sheet."""
    pattern = _VALUES.get(feature)
    if pattern is not None:
        return pattern.fullmatch(value.lower()) is not None
    if not element:
        return False
    return (feature in _NOT_ON and element not in _NOT_ON[feature]) or element in _ONLY_ON.get(feature, ())


def attribute_keeps_within(feature: str, element: str, attributes: Mapping[str, str]) -> bool:
    """True if clients with partial support show this element or attribute of it."""
    if feature == "html-lists":
        return "reversed" not in attributes and not (element == "li" and "value" in attributes)
    if feature == "html-mailto-links":
        return "bcc=" not in attributes.get("href", "").lower()
    return feature in _NOT_ON and element not in _NOT_ON[feature]
