"""Making HTML that is nested absurdly deep flatter, so that parsing it takes no longer than its length asks for."""

import re

__all__ = ["flattened"]

# The parser looks through the open elements at many tags, so its time grows with the square of the nesting. Documents
# with fewer tags than this take milliseconds whatever they are; the others are made flatter first.
_FEW_TAGS = 2_000
_DEPTH = 250
_TAG = re.compile(r"<(/?)([a-z][a-z0-9:-]*)[^<>]*>?", re.IGNORECASE)
_NEVER_DEEP = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
    | {"p", "li", "td", "th", "tr", "dt", "dd", "tbody", "thead", "tfoot", "colgroup", "option", "body", "html", "head"}
)


def flattened(html: str) -> str:
    """``html`` without the start tags that lie deeper than `_DEPTH` open elements; as it is if it has few tags."""
    if html.count("<") <= _FEW_TAGS:
        return html
    depth = 0
    kept: list[str] = []
    copied = 0
    for match in _TAG.finditer(html):
        if match[2].lower() in _NEVER_DEEP:
            continue
        if match[1]:
            depth = max(depth - 1, 0)
        elif depth < _DEPTH:
            depth += 1
        else:
            kept.append(html[copied : match.start()])
            copied = match.end()
    kept.append(html[copied:])
    return "".join(kept)
