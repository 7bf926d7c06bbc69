"""The elements of an HTML part, for looking at them and not for showing them."""

import re
from collections.abc import Iterator
from html import unescape

__all__ = ["elements"]

# Every pattern goes on from where the last one ended, so the time is proportional to the length whatever the input.
_OPENING = re.compile(r"<(!--|[a-zA-Z][^\s/>]*)", re.ASCII)
_COMMENT_END = re.compile(r"--!?>")
_ATTRIBUTE = re.compile(r"[\s/]*+(=*+[^\s/>=]++|=++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>]*+)))?+", re.ASCII)
_TAG_END = re.compile(r"[\s/]*+>?")
_TEXT_ONLY = {
    name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title", "xmp", "noembed")
}


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
