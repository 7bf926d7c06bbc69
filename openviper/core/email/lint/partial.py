"""Tell which uses of a feature keep within what clients with partial support show, as the notes of the data say."""

import re
from collections.abc import Mapping

from openviper.markup.stylesheet import Declaration

__all__ = [
    "LIMITS",
    "LONGEST_STYLE",
    "STYLE_IN_BODY",
    "STYLE_TOO_LONG",
    "attribute_keeps_within",
    "declaration_keeps_within",
    "important_limits",
    "passed_limits",
]

STYLE_IN_BODY = "Not supported inside the <body>"
STYLE_TOO_LONG = "is limited to 16 KB"
_GIF_AS_DATA = "Does not render Base 64 gif format"
_ONLY_ON_BODY = "Only supported on the <body> element"
_NEGATIVE = "Negative values are not supported"
_AUTO = "auto value is not supported"
_ONLY_COLOURS = "Only background-color values are supported"
_ONLY_ONE_VALUE = "Does not support multiple values"
_NO_SIZE = "Does not support the / value shorthand"
_ONLY_NONE = "Only supports display:none"
_NO_FLOW_ROOT = "flow-root"
_NO_LIST_IMAGE = "list-style-image values are not supported"
_NO_LIST_URL = "url() is transformed"
_ONLY_LIST_TYPE = "Only list-style-type values are supported"
_ONLY_LOWER, _ONLY_UPPER = "Only supported in lowercase", "Only supported if not written in lowercase"
_ONLY_AFTER_BLANK, _NOT_INLINE = "Only supported with a space before", "Not supported inline"
_NO_BLANK_AND_IMAGE = "Removed if there is no space before"
_WITHOUT_STYLE = "due to the lack of <style> support"
LIMITS = {
    "css-background": {_ONLY_COLOURS: "", _ONLY_ONE_VALUE: "", _NO_SIZE: ""},
    "css-background-image": {_ONLY_ONE_VALUE: ""},
    "css-display": {_ONLY_NONE: "", _NO_FLOW_ROOT: ""},
    "css-important": dict.fromkeys(
        (_ONLY_LOWER, _ONLY_UPPER, _ONLY_AFTER_BLANK, _NOT_INLINE, _NO_BLANK_AND_IMAGE, _WITHOUT_STYLE), ""
    ),
    "css-list-style": {_NO_LIST_IMAGE: "", _NO_LIST_URL: "", _ONLY_LIST_TYPE: ""},
    "css-margin": {_NEGATIVE: "", _AUTO: ""},
    "css-text-indent": {_NEGATIVE: ""},
    "html-background": {_ONLY_ON_BODY: ""},
    "html-style": {
        STYLE_IN_BODY: "It stands inside the body, where its rules are lost: move it into the head",
        STYLE_TOO_LONG: "It is longer than 16 kB, and its rules are lost: divide or shorten it, or turn inline_css on",
    },
    "image-base64": {_GIF_AS_DATA: ""},
}
"""Parts of a feature's notes, each a limit of the clients with that note, and what to say of a use that passes it."""

LONGEST_STYLE = 16 * 1024
"""The most letters of a style sheet that Gmail reads."""

_COLOUR = r"#[0-9a-f]{3,8}|[a-z]+"
_COMMAS = r"\(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*"
_VALUES = {
    slug: re.compile(pattern, re.DOTALL)
    for slug, pattern in {
        "css-background": r".*",  # but for the limits of some, as in all of LIMITS
        "css-background-image": r".*",
        "css-border": r"(?!.*(?:\d{2}|9)px).*",  # at most 8px
        "css-border-radius": r"[^/]*",
        "css-display": r".*",
        "css-font-size": r"(?:\d+\.?\d*|\.\d+)(?:px|pt)",
        "css-font-weight": r"normal|bold|400|[6-9]00",
        "css-important": r".*",
        "css-letter-spacing": r"normal|0|[\d.]+px",
        "css-line-height": r"[\d.]+%?",
        "css-list-style": r".*",
        "css-margin": r".*",
        "css-overflow": r"hidden|visible",
        "css-rgb": rf"(?:[^(]|(?<!rgb)\(|(?<=rgb){_COMMAS}\))*",
        "css-rgba": rf"(?:[^(]|(?<!rgba)\(|(?<=rgba){_COMMAS},\s*[\d.]+%?\s*\))*",
        "css-text-align": r"left|right|center|justify",
        "css-text-transform": r"uppercase|capitalize|none",
    }.items()
}
# Elements on which a property, or an attribute, is not supported where its support is partial.
_NOT_ON = {
    "css-border": frozenset({"div", "p"}),
    "css-height": frozenset({"body", "div", "p", "span"}),
    "css-margin": frozenset({"body", "span"}),
    "css-width": frozenset({"body", "div", "img", "p", "span"}),
    "html-lang": frozenset({"td"}),
}
_ONLY_ON = {
    "css-max-width": frozenset({"table"}),
    "css-padding": frozenset({"td", "th"}),
    "html-background": frozenset({"body"}),
}
_NOTHING = re.compile(r"none|0(?:px|%)?(?:\s+0(?:px|%)?)*")
_NOTHING_AS_WITHOUT = frozenset({"css-border", "css-margin", "css-padding"})
_BELOW_ZERO = re.compile(r"(?<![\w-])-[\d.]")
# Neither a comma nor a slash, but in brackets or strings.
_OUTSIDE = r"(?:[^(),/\"']|\((?:[^()\"']|\"[^\"]*+\"|'[^']*+'|\([^()]*+\))*+\)|\"[^\"]*+\"|'[^']*+')*+"
_SEVERAL = re.compile(rf"^(?:{_OUTSIDE}/)*+{_OUTSIDE},")
_BY_VALUE = {
    "css-background": {
        _ONLY_COLOURS: re.compile(rf"^(?!(?:{_COLOUR})$)"),
        _ONLY_ONE_VALUE: _SEVERAL,
        _NO_SIZE: re.compile(rf"^(?:{_OUTSIDE},)*+{_OUTSIDE}/"),
    },
    "css-background-image": {_ONLY_ONE_VALUE: _SEVERAL},
    "css-display": {
        _ONLY_NONE: re.compile(r"^(?!none$)"),
        _NO_FLOW_ROOT: re.compile(r"flow-root|contents|initial|revert|unset|\s"),
    },
    "css-list-style": {
        _NO_LIST_IMAGE: re.compile(r"url\("),
        _NO_LIST_URL: re.compile(r"url\("),
        _ONLY_LIST_TYPE: re.compile(r"url\(|inside|outside"),
    },
    "css-margin": {_NEGATIVE: _BELOW_ZERO, _AUTO: re.compile(r"auto")},
    "css-text-indent": {_NEGATIVE: _BELOW_ZERO},
    "image-base64": {_GIF_AS_DATA: re.compile(r"^\s*data:image/gif")},
}
_SIZES = frozenset({"html-height", "html-width"})


def declaration_keeps_within(feature: str, value: str, element: str) -> bool:
    """True if this value is shown by clients with partial support; ``element`` is empty in a style sheet."""
    value = value.lower()
    if feature in _NOTHING_AS_WITHOUT and _NOTHING.fullmatch(value):
        return True
    pattern = _VALUES.get(feature)
    if pattern is not None and not pattern.fullmatch(value):
        return False
    if feature in _ONLY_ON:
        return element in _ONLY_ON[feature]
    if feature in _NOT_ON and element:
        return element not in _NOT_ON[feature]
    return pattern is not None


def attribute_keeps_within(feature: str, element: str, attributes: Mapping[str, str]) -> bool:
    """True if clients with partial support show this element or attribute of it."""
    if feature == "html-lists":
        return "reversed" not in attributes and not (element == "li" and "value" in attributes)
    if feature == "html-mailto-links":
        return "bcc=" not in attributes.get("href", "").lower()
    if feature == "html-align":
        return element not in ("img", "table") or attributes["align"].strip().lower() not in ("left", "right")
    if feature == "html-dir":
        return attributes["dir"].strip().lower() == "ltr"
    if feature in _SIZES:
        return element != "img" or "%" not in attributes[feature.removeprefix("html-")]
    if feature in _ONLY_ON:
        return element in _ONLY_ON[feature]
    return feature in _NOT_ON and element not in _NOT_ON[feature]


def passed_limits(feature: str, value: str, element: str = "") -> tuple[str, ...]:
    """Return the limits of the feature in ``LIMITS`` that a use passes.

    ``value`` is that of a declaration, or the address of an image.
    """
    value = value.lower()
    if feature in _BY_VALUE:
        return tuple(limit for limit, pattern in _BY_VALUE[feature].items() if pattern.search(value))
    if feature == "html-background":
        return () if element == "body" else (_ONLY_ON_BODY,)
    return ()


def important_limits(declaration: Declaration, *, inline: bool) -> tuple[str, ...]:
    """Return the limits in ``LIMITS`` that the ``!important`` of a declaration passes; none if it has no such mark."""
    mark = declaration.important
    if not mark:
        return ()
    lower, blank = "important" in mark, mark[0] != "!"
    image = declaration.name == "background-image"
    passed = {
        _ONLY_LOWER: not lower,
        _ONLY_UPPER: lower,
        _ONLY_AFTER_BLANK: not blank,
        _NOT_INLINE: inline,
        _NO_BLANK_AND_IMAGE: image and not blank,
    }
    return tuple(limit for limit, is_passed in passed.items() if is_passed)
