"""Detect which CSS features a declaration, a selector or an at-rule uses; named as in the data on mail clients."""

import re

from openviper.markup.stylesheet import Declaration

__all__ = [
    "CSS_FEATURES",
    "at_rule_features",
    "declaration_features",
    "holds_styles",
    "image_addresses",
    "selected_names",
    "selector_features",
]

# Features that are the property of their name.
_PLAIN = """
    accent-color align-items animation aspect-ratio backdrop-filter background background-blend-mode background-clip
    background-color background-image background-origin background-position background-repeat background-size
    border-collapse border-image border-radius border-spacing box-shadow box-sizing caption-side clear clip-path
    color-scheme column-count cursor direction display empty-cells filter float font font-kerning font-size
    font-size-adjust font-stretch font-weight height hyphenate-character hyphenate-limit-chars hyphens inline-size inset
    justify-content letter-spacing line-height list-style list-style-image list-style-position list-style-type margin
    mask-image max-block-size max-height max-inline-size max-width min-block-size min-height min-inline-size min-width
    mix-blend-mode object-fit object-position opacity orphans outline outline-offset overflow overflow-wrap padding
    position resize shape-margin shape-outside tab-size table-layout text-align text-align-last text-decoration
    text-decoration-color text-decoration-line text-decoration-skip-ink text-decoration-style text-decoration-thickness
    text-emphasis text-emphasis-position text-indent text-justify text-orientation text-overflow text-shadow
    text-transform text-underline-offset text-underline-position text-wrap transform transition user-select
    vertical-align visibility white-space white-space-collapse widows width word-break word-spacing word-wrap
    writing-mode z-index
"""
_SIDES = ("top", "right", "bottom", "left")
# Features with several properties, or properties of another name.
_SEVERAL = {
    "css-animation": "animation-delay animation-direction animation-duration animation-fill-mode "
    "animation-iteration-count animation-name animation-play-state animation-timing-function",
    "css-block-inline-size": "block-size inline-size",
    "css-border": " ".join(
        ["border border-width border-style border-color"]
        + [f"border-{side}{part}" for side in _SIDES for part in ("", "-width", "-style", "-color")]
    ),
    "css-border-image": "border-image-outset border-image-repeat border-image-slice border-image-source "
    "border-image-width",
    "css-border-inline-block": "border-inline border-block",
    "css-border-inline-block-individual": "border-block-start border-block-end border-inline-start border-inline-end",
    "css-border-inline-block-longhand": " ".join(
        f"border-{axis}-{part}" for axis in ("block", "inline") for part in ("color", "style", "width")
    ),
    "css-border-radius": "border-top-left-radius border-top-right-radius border-bottom-left-radius "
    "border-bottom-right-radius",
    "css-border-radius-logical": "border-start-start-radius border-start-end-radius border-end-start-radius "
    "border-end-end-radius",
    "css-column-layout-properties": "columns column-count column-fill column-gap column-rule column-rule-color "
    "column-rule-style column-rule-width column-span column-width",
    "css-gap": "gap column-gap row-gap",
    "css-grid-template": "grid-template grid-template-areas grid-template-columns grid-template-rows",
    "css-left-right-top-bottom": " ".join(_SIDES),
    "css-margin": " ".join(f"margin-{side}" for side in _SIDES),
    "css-margin-block-start-end": "margin-block-start margin-block-end",
    "css-margin-inline-block": "margin-inline margin-block",
    "css-margin-inline-start-end": "margin-inline-start margin-inline-end",
    "css-overflow": "overflow-x overflow-y",
    "css-padding": " ".join(f"padding-{side}" for side in _SIDES),
    "css-padding-block-start-end": "padding-block-start padding-block-end",
    "css-padding-inline-block": "padding-inline padding-block",
    "css-padding-inline-start-end": "padding-inline-start padding-inline-end",
    "css-scroll-snap": "scroll-snap-align scroll-snap-stop scroll-snap-type",
    "css-text-emphasis": "text-emphasis-color text-emphasis-style",
    "css-transition": "transition-delay transition-duration transition-property transition-timing-function",
}
_PROPERTIES: dict[str, list[str]] = {name: [f"css-{name}"] for name in _PLAIN.split()}
for _slug, _names in _SEVERAL.items():
    for _name in _names.split():
        _PROPERTIES.setdefault(_name, []).append(_slug)

# Features that are a value of one property.
_PAIRS = {
    "css-display-flex": ("display", re.compile(r"(?:inline-)?flex")),
    "css-display-grid": ("display", re.compile(r"(?:inline-)?grid")),
    "css-display-none": ("display", re.compile(r"none")),
    "css-flex-direction": ("flex-direction", re.compile(r"column(?:-reverse)?")),
    "css-flex-wrap": ("flex-wrap", re.compile(r"wrap(?:-reverse)?")),
}
_BY_PROPERTY: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _slug, (_name, _value) in _PAIRS.items():
    _BY_PROPERTY.setdefault(_name, []).append((_slug, _value))

# Values that ask for nothing: a client without the property shows the same.
_NONE = re.compile(r"none")
_OFF = {
    **dict.fromkeys(("animation", "backdrop-filter", "box-shadow", "clip-path", "filter", "mask-image"), _NONE),
    **dict.fromkeys(("text-shadow", "transform", "transition"), _NONE),
    "border-radius": re.compile(r"0(?:px|%)?"),
    "opacity": re.compile(r"1(?:\.0+)?|100%"),
    "outline": re.compile(r"none|0(?:px)?"),
}
_SHORTHANDS_WITH_IMAGE = ("background", "list-style")  # with an address they set the image as well

# Features that are functions or keywords in any value.
_FUNCTIONS = {
    "calc": "css-unit-calc",
    "clamp": "css-function-clamp",
    "conic-gradient": "css-conic-gradient",
    "fit-content": "css-intrinsic-size",
    "lab": "css-modern-color",
    "lch": "css-modern-color",
    "light-dark": "css-function-light-dark",
    "linear-gradient": "css-linear-gradient",
    "max": "css-function-max",
    "min": "css-function-min",
    "oklab": "css-modern-color",
    "oklch": "css-modern-color",
    "radial-gradient": "css-radial-gradient",
    "repeating-conic-gradient": "css-conic-gradient",
    "repeating-linear-gradient": "css-linear-gradient",
    "repeating-radial-gradient": "css-radial-gradient",
    "rgb": "css-rgb",
    "rgba": "css-rgba",
    "var": "css-variables",
}
_KEYWORDS = {
    "fit-content": "css-intrinsic-size",
    "initial": "css-unit-initial",
    "max-content": "css-intrinsic-size",
    "min-content": "css-intrinsic-size",
    "system-ui": "css-sytem-ui",
    "ui-monospace": "css-sytem-ui",
    "ui-rounded": "css-sytem-ui",
    "ui-sans-serif": "css-sytem-ui",
    "ui-serif": "css-sytem-ui",
}
_UNITS = {
    **{
        unit: f"css-unit-{unit}"
        for unit in ("ch", "cm", "em", "ex", "in", "mm", "pc", "pt", "px", "rem", "vh", "vmax", "vmin", "vw")
    },
    "%": "css-unit-percent",
}
# Strings and addresses hold no functions, keywords or units.
_OPAQUE = re.compile(
    r"\"(?:[^\"\\]|\\.)*+\"?|'(?:[^'\\]|\\.)*+'?|url\([ \t\n\r\f]*+(?:[^\"')\\]|\\.)*+\)?", re.DOTALL | re.IGNORECASE
)
_WORD = re.compile(
    r"(?<![\w#.-])(?:[+-]?(?:\d++\.?\d*+|\.\d++)(?:e[+-]?\d++)?(%|[a-z]++)|([a-z-]++)(\()?)", re.IGNORECASE
)
_ADDRESS = re.compile(
    r"url\([ \t\n\r\f]*+(?:\"((?:[^\"\\]|\\.)*+)\"|'((?:[^'\\]|\\.)*+)'|((?:[^\"')\\]|\\.)*+))",
    re.DOTALL | re.IGNORECASE,
)

_PSEUDO_CLASSES = """
    active checked default first-child first-of-type focus focus-visible focus-within has hover lang last-child
    last-of-type link not nth-child nth-last-child nth-last-of-type nth-of-type only-child only-of-type target visited
"""
_STATES = frozenset(_PSEUDO_CLASSES.split())
_PSEUDO_ELEMENTS = frozenset(["after", "before", "first-letter", "first-line", "marker", "placeholder"])
_WITH_ONE_COLON = frozenset(["after", "before", "first-letter", "first-line"])  # as in CSS 2
_PSEUDO = re.compile(r"(::?)([a-z-]++)", re.IGNORECASE)
# Names of classes such as ``sm:hover`` and ``w-1/2`` are written with escapes, as ``.sm\:hover``.
_ESCAPE = re.compile(r"\\(?:[0-9a-f]{1,6}[ \t\n\r\f]?|.)", re.IGNORECASE | re.DOTALL)
_ATTRIBUTE_SELECTOR = re.compile(r"\[(?:[^\]\"']|\"[^\"]*+\"|'[^']*+')*+\]?")
_ARGUMENTS = re.compile(r"\([^()]*+\)")
_PSEUDO_WHOLE = re.compile(r"::?[a-z-]++", re.IGNORECASE)
_COMBINATOR = re.compile(r"[ \t\n\r\f]*+([>+~])[ \t\n\r\f]*+|[ \t\n\r\f]++")
_COMBINATORS = {">": "css-selector-child", "+": "css-selector-adjacent-sibling", "~": "css-selector-general-sibling"}
_NAME = r"(?:[\w-]|[^\x00-\x7f])++"
_CLASS, _ID, _TYPE = re.compile(rf"\.{_NAME}"), re.compile(rf"#{_NAME}"), re.compile(_NAME)
_MOST_NESTED = 8
_NOT_PLAIN = frozenset(":[+~&")

_AT_RULES = {
    "font-face": "css-at-font-face",
    "import": "css-at-import",
    "keyframes": "css-at-keyframes",
    "media": "css-at-media",
    "supports": "css-at-supports",
}
# Their blocks have descriptors, which are named like properties: "width" of a viewport, "margin" of a printed page.
_WITH_DESCRIPTORS = frozenset(
    {"counter-style", "font-face", "font-feature-values", "font-palette-values", "page", "property", "viewport"}
)
_AT_NAME = re.compile(r"@(?:-(?:webkit|moz|ms|o)-)?([a-z-]+)", re.IGNORECASE)
_MEDIA_FEATURE = re.compile(
    r"\(\s*(?:(any-hover|hover)|(orientation)|(prefers-color-scheme)|(prefers-reduced-motion)"
    r"|((?:-webkit-|-moz-)?(?:min-|max-)?(?:-moz-)?device-pixel-ratio))\s*[:)]",
    re.IGNORECASE,
)
_MEDIA_FEATURES = (
    "css-at-media-hover",
    "css-at-media-orientation",
    "css-at-media-prefers-color-scheme",
    "css-at-media-prefers-reduced-motion",
    "css-at-media-device-pixel-ratio",
)

CSS_FEATURES = frozenset(
    {slug for slugs in _PROPERTIES.values() for slug in slugs}
    | {"css-important", "css-comments", "css-nesting"}
    | set(_PAIRS)
    | set(_FUNCTIONS.values())
    | set(_KEYWORDS.values())
    | set(_UNITS.values())
    | {f"css-pseudo-class-{name}" for name in _STATES}
    | {f"css-pseudo-element-{name}" for name in _PSEUDO_ELEMENTS}
    | set(_COMBINATORS.values())
    | {f"css-selector-{kind}" for kind in ("attribute", "chaining", "class", "descendant", "grouping", "id", "type")}
    | {"css-selector-universal"}
    | set(_AT_RULES.values())
    | set(_MEDIA_FEATURES)
)
"""All features that this module and the readers of style sheets find."""


def declaration_features(declaration: Declaration) -> set[str]:
    """Return the features that a declaration uses: its property, functions, keywords and units.

    A property that begins with ``-webkit-`` is the one without it, as in the engines of mail clients; they read those
    of other vendors no more.
    """
    name, value, important = declaration
    name = name.removeprefix("-webkit-")
    off = name in _OFF and _OFF[name].fullmatch(value.lower()) is not None
    found = set() if off else set(_PROPERTIES.get(name, ()))
    plain = _OPAQUE.sub(lambda match: "url(" if match[0][:1] in "uU" else "", value).lower()
    words = plain.split()
    pairs = {slug for slug, pattern in _BY_PROPERTY.get(name, ()) if any(map(pattern.fullmatch, words))}
    if name == "display" and pairs:
        found.clear()  # the feature of that name is about the other values
    found |= pairs
    if name == "flex-flow":
        found |= {
            slug for slug in ("css-flex-direction", "css-flex-wrap") if any(map(_PAIRS[slug][1].fullmatch, words))
        }
    if name in _SHORTHANDS_WITH_IMAGE and _ADDRESS.search(value):
        found.add(f"css-{name}-image")
    if name.startswith("--"):
        found.add("css-variables")
    if important:
        found.add("css-important")
    for unit, word, call in _WORD.findall(plain):
        if unit:
            named = _UNITS.get(unit)
        else:
            named = _FUNCTIONS.get(word.removeprefix("-webkit-")) if call else _KEYWORDS.get(word)
        if named is not None:
            found.add(named)
    return found


def image_addresses(value: str) -> list[str]:
    """Return the addresses in a declaration's value."""
    return [address for match in _ADDRESS.findall(value) if (address := "".join(match).strip())]


def selector_features(selectors: str) -> set[str]:
    """Return the features that a rule's list of selectors uses."""
    found: set[str] = set()
    plain = _without_escapes(selectors)
    for colons, name in _PSEUDO.findall(plain):
        lowered = name.lower()
        if lowered in _PSEUDO_ELEMENTS and (colons == "::" or lowered in _WITH_ONE_COLON):
            found.add(f"css-pseudo-element-{lowered}")
        elif colons == ":" and lowered in _STATES:
            found.add(f"css-pseudo-class-{lowered}")
    parts = _split(plain)
    if len(parts) > 1:
        found.add("css-selector-grouping")
    for part in parts:
        found |= _structure(part)
    return found


def selected_names(selectors: str, *, plain: bool) -> set[str]:
    """Return the names by which a rule selects elements: ".class" and "#id", else the type, else "*".

    With ``plain``, only of selectors that every client with style sheets knows, which are names, one inside another;
    else only of those with a pseudo-class.
    """
    found: set[str] = set()
    for part in _split(_without_escapes(selectors)):
        if not _NOT_PLAIN.isdisjoint(part) if plain else ":" not in part:
            continue
        last = _PSEUDO_WHOLE.sub("", _COMBINATOR.split(part)[-1])
        named = {*_CLASS.findall(last), *_ID.findall(last)}
        kind = _TYPE.match(last)
        found |= named or {kind[0].lower() if kind else "*"}
    return found


def _without_escapes(selectors: str) -> str:
    return _ATTRIBUTE_SELECTOR.sub("[]", _ESCAPE.sub("x", selectors))


def _split(selectors: str) -> list[str]:
    """Return the selectors of a list, without the arguments of pseudo-classes."""
    for _ in range(_MOST_NESTED):
        selectors, replaced = _ARGUMENTS.subn("", selectors)
        if not replaced:
            break
    return [part.strip() for part in selectors.split(",")]


def _structure(selector: str) -> set[str]:
    """Return the features of one selector: its combinators, and what each part between them names."""
    found: set[str] = set()
    pieces = _COMBINATOR.split(selector)
    for combinator in pieces[1::2]:
        found.add(_COMBINATORS[combinator] if combinator else "css-selector-descendant")
    for compound in pieces[::2]:
        if "[]" in compound:
            found.add("css-selector-attribute")
        names = _PSEUDO_WHOLE.sub("", compound.replace("[]", ""))
        classes, ids = _CLASS.findall(names), _ID.findall(names)
        if classes:
            found.add("css-selector-class")
        if ids:
            found.add("css-selector-id")
        if len(classes) + len(ids) > 1:
            found.add("css-selector-chaining")
        if names.startswith("*"):
            found.add("css-selector-universal")
        elif _TYPE.match(names):
            found.add("css-selector-type")
    return found


def at_rule_features(prelude: str) -> set[str]:
    """Return the features that an at-rule uses, from the text before its block."""
    match = _AT_NAME.match(prelude)
    slug = _AT_RULES.get(match[1].lower()) if match else None
    if slug is None:
        return set()
    found = {slug}
    if slug == "css-at-media":
        for features in _MEDIA_FEATURE.findall(prelude):
            found |= {name for name, present in zip(_MEDIA_FEATURES, features, strict=True) if present}
    return found


def holds_styles(prelude: str) -> bool:
    """True unless the text before a block is that of an at-rule with descriptors, such as ``@font-face``."""
    match = _AT_NAME.match(prelude)
    return match is None or match[1].lower() not in _WITH_DESCRIPTORS
