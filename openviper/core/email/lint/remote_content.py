"""Inspect an HTML part: its elements, and the remote content that it loads."""

import re
from collections.abc import Iterator

from openviper.core.email.templates.links import link_scheme
from openviper.markup import Tag, attribute_text, attributes, read_tags

__all__ = ["attribute_values", "elements", "is_remote", "remote_content", "remote_styles"]

_REMOTE = frozenset({"http", "https", "//"})
_STYLE_URL = re.compile(
    r"(?:url\(|image-set\(|@import)\s*+(?:[\"']|&(?:quot|apos|\#34|\#39);)?+\s*+(?:https?:)?//", re.IGNORECASE
)
_LOADED = ("src", "background", "poster")
# The frame never loads these, even if remote content is allowed.
_NEVER_LOADED = frozenset({"script", "iframe", "frame", "object", "embed", "portal", "fencedframe"})


def elements(html: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each start tag's name, in lower case, and attributes."""
    for tag in read_tags(html):
        if tag.kind == "start":
            yield tag.name, attribute_values(html, tag)


def attribute_values(html: str, tag: Tag) -> dict[str, str]:
    """Return the attributes of a start tag; the first of two equal ones counts."""
    found: dict[str, str] = {}
    for attribute in attributes(html, tag):
        found.setdefault(attribute.name, attribute_text(attribute.value))
    return found


def is_remote(address: str) -> bool:
    """True if an image with this address is remote."""
    return link_scheme(address) in _REMOTE


def remote_styles(html: str) -> bool:
    """True if styles in ``html`` load remote content."""
    return _STYLE_URL.search(html) is not None


def remote_content(html: str) -> bool:
    """True if ``html`` loads remote images, media, fonts or style sheets."""
    return remote_styles(html) or any(
        is_remote(address) for name, attributes in elements(html) for address in _loaded(name, attributes)
    )


def _loaded(name: str, attributes: dict[str, str]) -> Iterator[str]:
    """Yield the addresses that a mail client loads for the element."""
    if name in _NEVER_LOADED:
        return
    yield from (attributes[attribute] for attribute in _LOADED if attribute in attributes)
    yield from attributes.get("srcset", "").split(",")
    if name in ("link", "image"):
        yield attributes.get("href") or attributes.get("xlink:href", "")
