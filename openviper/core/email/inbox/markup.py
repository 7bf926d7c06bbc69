"""What an HTML part consists of and asks for, for looking at it and not for showing it."""

import re
from collections.abc import Iterator
from html import unescape

from openviper.core.email.templates.links import link_scheme

__all__ = ["elements", "is_remote", "remote_content", "remote_styles"]

# Every pattern goes on from where the last one ended, so the time is proportional to the length whatever the input.
_OPENING = re.compile(r"<(!--|[a-zA-Z][^\s/>]*)", re.ASCII)
_COMMENT_END = re.compile(r"--!?>")
_ATTRIBUTE = re.compile(r"[\s/]*+(=*+[^\s/>=]++|=++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>]*+)))?+", re.ASCII)
_TAG_END = re.compile(r"[\s/]*+>?")
_TEXT_ONLY = {
    name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title", "xmp", "noembed")
}

_REMOTE = frozenset({"http", "https", "//"})
_STYLE_URL = re.compile(
    r"(?:url\(|image-set\(|@import)\s*+(?:[\"']|&(?:quot|apos|\#34|\#39);)?+\s*+(?:https?:)?//", re.IGNORECASE
)
_LOADED = ("src", "background", "poster")
# These are never loaded, also where remote content is allowed.
_NEVER_LOADED = frozenset({"script", "iframe", "frame", "object", "embed", "portal", "fencedframe"})


def elements(html: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The name, lower case, and the attributes of each start tag in order; of two equal attributes the first counts."""
    position = 0
    while (opening := _OPENING.search(html, position)) is not None:
        position = opening.end()
        name = opening[1].lower()
        if name == "!--":
            end = _COMMENT_END.search(html, position)
            if end is None:
                return
            position = end.end()
            continue
        attributes: dict[str, str] = {}
        while (attribute := _ATTRIBUTE.match(html, position)) is not None:
            position = attribute.end()
            value = attribute[2] or attribute[3] or attribute[4] or ""
            attributes.setdefault(attribute[1].lower(), unescape(value))
        end = _TAG_END.match(html, position)
        position = end.end() if end else position
        yield name, attributes
        if name in _TEXT_ONLY:
            closing = _TEXT_ONLY[name].search(html, position)
            if closing is None:
                return
            position = closing.start()


def is_remote(address: str) -> bool:
    """Whether an image with this address comes from elsewhere."""
    return link_scheme(address) in _REMOTE


def remote_styles(html: str) -> bool:
    """Whether styles in ``html`` ask for something from elsewhere."""
    return _STYLE_URL.search(html) is not None


def remote_content(html: str) -> bool:
    """Whether ``html`` asks for images, media, fonts or style sheets from elsewhere."""
    return remote_styles(html) or any(
        is_remote(address) for name, attributes in elements(html) for address in _loaded(name, attributes)
    )


def _loaded(name: str, attributes: dict[str, str]) -> Iterator[str]:
    """The addresses of what a reader loads together with the element."""
    if name in _NEVER_LOADED:
        return
    yield from (attributes[attribute] for attribute in _LOADED if attribute in attributes)
    yield from attributes.get("srcset", "").split(",")
    if name in ("link", "image"):
        yield attributes.get("href") or attributes.get("xlink:href", "")
