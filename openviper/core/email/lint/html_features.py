"""Detect which features of HTML and which image formats an element uses; named as in the data on mail clients."""

import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

__all__ = ["HTML_FEATURES", "IMAGE_FEATURES", "element_features", "image_features", "srcset_addresses"]

_LISTS = ("ul", "ol", "dl", "li", "dt", "dd")
_SEMANTICS = "article aside details figcaption figure footer header main mark nav section summary time"
_NAMED = """
    abbr acronym address audio base bdi blockquote code del dfn dialog div form hr img marquee meter object p picture
    pre progress rp rt ruby select small span strike strong style svg table textarea video wbr
"""
_NAMED_ATTRIBUTES = """
    align aria-describedby aria-hidden aria-label aria-labelledby aria-live background cellpadding cellspacing dir
    height hidden lang popover required role srcset target valign width
"""
_ELEMENTS = {
    **{name: f"html-{name}" for name in _NAMED.split()},
    **dict.fromkeys(_LISTS, "html-lists"),
    **dict.fromkeys(_SEMANTICS.split(), "html-semantics"),
    **{f"h{level}": "html-h1-h6" for level in range(1, 7)},
    "area": "html-image-maps",
}
_ATTRIBUTES = {
    **{name: f"html-{name}" for name in _NAMED_ATTRIBUTES.split()},
    "inert": "css-inert-attribute",
    "loading": "html-loading-attribute",
    "sizes": "html-srcset",
}
_INPUTS = frozenset({"checkbox", "hidden", "radio", "reset", "submit", "text"})
_WITHOUT_TEXT = frozenset({"button", "color", "file", "image", "range"})
_BUTTONS = frozenset({"reset", "submit"})
_OF_A_BODY = frozenset({"background", "bgcolor", "class", "id", "style", "text"})
_SCHEMES = frozenset({"color-scheme", "supported-color-schemes"})

_FORMATS = {
    "apng": "image-apng",
    "avif": "image-avif",
    "bmp": "image-bmp",
    "gif": "image-gif",
    "heic": "image-heif",
    "heif": "image-heif",
    "ico": "image-ico",
    "jpeg": "image-jpg",
    "jpg": "image-jpg",
    "mp4": "image-mp4",
    "png": "image-png",
    "svg": "image-svg",
    "svg+xml": "image-svg",
    "tif": "image-tiff",
    "tiff": "image-tiff",
    "vnd.microsoft.icon": "image-ico",
    "webp": "image-webp",
    "x-icon": "image-ico",
    "x-ms-bmp": "image-bmp",
}
_DATA = re.compile(r"data:(?:image|video)/([a-z0-9.+-]+)([^,]*)", re.IGNORECASE)
_CANDIDATE = re.compile(r"[\t\n\f\r ,]*+([^\t\n\f\r ]++)")
_ENDING = re.compile(r"\.([a-z0-9]{2,5})$", re.IGNORECASE)

IMAGE_FEATURES = frozenset({*_FORMATS.values(), "image-base64"})
HTML_FEATURES = frozenset(
    {*_ELEMENTS.values(), *_ATTRIBUTES.values()}
    | {f"html-input-{kind}" for kind in _INPUTS}
    | {f"html-button-{kind}" for kind in _BUTTONS}
    | {"html-anchor-links", "html-body", "html-comments", "html-doctype", "html-link", "html-mailto-links"}
    | {"html-meta-color-scheme"}
)
"""All features of HTML that this module and the reader of messages find."""


def element_features(name: str, attributes: Mapping[str, str]) -> set[str]:
    """Return the features that a start tag uses."""
    found = {_ATTRIBUTES[attribute] for attribute in attributes if attribute in _ATTRIBUTES}
    if name in _ELEMENTS:
        found.add(_ELEMENTS[name])
    found.update(_by_attribute(name, attributes))
    return found


def _by_attribute(name: str, attributes: Mapping[str, str]) -> Iterator[str]:
    """Yield the features that are an element with a certain attribute."""
    if name in ("input", "button"):
        kind = attributes.get("type", "").strip().lower()
        if (feature := _input_feature(kind) if name == "input" else _button_feature(kind)) is not None:
            yield feature
    elif name == "img" and "usemap" in attributes:
        yield "html-image-maps"
    elif name == "body" and not _OF_A_BODY.isdisjoint(attributes):
        yield "html-body"
    elif name == "link" and "stylesheet" in attributes.get("rel", "").lower().split():
        yield "html-link"
    elif name == "meta" and attributes.get("name", "").strip().lower() in _SCHEMES:
        yield "html-meta-color-scheme"
    elif name in ("a", "area"):
        target = attributes.get("href", "").strip()
        if target.startswith("#") and len(target) > 1:
            yield "html-anchor-links"
        elif target[:7].lower() == "mailto:":
            yield "html-mailto-links"


def _input_feature(kind: str) -> str | None:
    """Return the feature that an ``<input>`` of this type uses; None for a type that the data has nothing like."""
    if kind == "image":
        return "html-input-submit"
    if kind in _INPUTS:
        return f"html-input-{kind}"
    # WHATWG HTML section 4.10.5: a field of text, also for a type that the client does not know.
    return None if kind in _WITHOUT_TEXT else "html-input-text"


def _button_feature(kind: str) -> str | None:
    """Return the feature that a ``<button>`` of this type uses; any type but those known is "submit"."""
    return None if kind == "button" else f"html-button-{kind if kind in _BUTTONS else 'submit'}"


def image_features(address: str, inline: Mapping[str, str]) -> set[str]:
    """Return the image format that an address names, and ``image-base64`` for data.

    ``inline`` has the MIME type of each inline attachment by the name in its ``cid:`` address.
    """
    address = address.strip()
    if (match := _DATA.match(address)) is not None:
        found = {_FORMATS.get(match[1].lower())}
        if "base64" in match[2].lower().split(";"):
            found.add("image-base64")
        return {slug for slug in found if slug}
    if address[:4].lower() == "cid:":
        ending = inline.get(unquote(address[4:]), "").lower().rpartition("/")[2]
    else:
        match = _ENDING.search(re.split(r"[?#]", address, maxsplit=1)[0])
        ending = match[1].lower() if match else ""
    return {_FORMATS[ending]} if ending in _FORMATS else set()


def srcset_addresses(srcset: str) -> list[str]:
    """Return the addresses of a ``srcset`` attribute (WHATWG HTML, section 4.8.4.2.2); data has commas of its own."""
    found: list[str] = []
    position = 0
    while (match := _CANDIDATE.match(srcset, position)) is not None:
        found.append(match[1].rstrip(","))
        position = match.end()
        if not match[1].endswith(","):
            position = srcset.find(",", position)
            if position < 0:
                break
    return found
