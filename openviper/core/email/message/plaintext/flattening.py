"""Taking absurd nesting and absurd numbers of attributes out of HTML, so that parsing it takes time in proportion to
its length.
"""

import re
from collections import Counter
from itertools import islice

__all__ = ["flattened"]

# The parser looks through the open elements at many tags, so its time grows with the square of the nesting. Documents
# with fewer tags than this take milliseconds whatever they are; the others are made flatter first.
_FEW_TAGS = 2_000
_DEPTH = 250
# It also compares each attribute with all those before it in the same tag. Below the length, that takes milliseconds.
_SHORT = 32 * 1024
_ATTRIBUTES = 500
_TAG = re.compile(r"<(/?)([a-z][a-z0-9:-]*)[^<>]*>?", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    r"""[\s/]*+(?:=*+[^\s/>=]++|=++)(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+""", re.ASCII
)
_TAG_WITH_ATTRIBUTES = re.compile(rf"(</?[a-z][^\s/>]*+)(?:{_ATTRIBUTE.pattern})*+", re.ASCII | re.IGNORECASE)
_NEVER_DEEP = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
    | {"p", "li", "td", "th", "tr", "dt", "dd", "tbody", "thead", "tfoot", "colgroup", "option", "body", "html", "head"}
)


def flattened(html: str) -> str:
    """``html`` without the start tags that lie deeper than `_DEPTH` open elements, and without what a tag has behind
    its first `_ATTRIBUTES` attributes; as it is where it is too short for that to matter.
    """
    if len(html) > _SHORT:
        html = _TAG_WITH_ATTRIBUTES.sub(_with_few_attributes, html)
    if html.count("<") <= _FEW_TAGS:
        return html
    depth = 0
    opened: Counter[str] = Counter()  # an end tag of another name ends nothing
    kept: list[str] = []
    copied = 0
    for match in _TAG.finditer(html):
        name = match[2].lower()
        if name in _NEVER_DEEP:
            continue
        if match[1]:
            if opened[name]:
                opened[name] -= 1
                depth -= 1
        elif depth < _DEPTH:
            opened[name] += 1
            depth += 1
        else:
            kept.append(html[copied : match.start()])
            copied = match.end()
    kept.append(html[copied:])
    return "".join(kept)


def _with_few_attributes(tag: re.Match[str]) -> str:
    whole = tag[0]
    if len(whole) < 2 * _ATTRIBUTES:
        return whole
    attributes = _ATTRIBUTE.finditer(whole, tag.end(1) - tag.start())
    last = next(islice(attributes, _ATTRIBUTES - 1, None), None)
    return whole if last is None else whole[: last.end()]
