"""Restrict where links of an HTML part lead, and which attributes values can make."""

import re
import unicodedata
from collections.abc import Collection, Iterator
from html import unescape

from openviper.core.email.templates.values import FIRST_STAND_IN, STAND_IN
from openviper.markup import Attribute, attributes, read_tags
from openviper.text import CONTROLS

__all__ = [
    "SCHEMES",
    "guard_links",
    "link_scheme",
    "naming_stand_in",
    "quote_stand_ins",
    "unquoted_stand_in",
    "written_schemes",
]

SCHEMES = frozenset({"http", "https", "mailto", "tel", "cid"})
"""What a link or an image may use whoever wrote it."""

_PROTOCOL_RELATIVE = "//"
_NEVER = frozenset({"javascript", "vbscript", "livescript", "jscript", "mocha", "view-source", "blob", "file"})
_URL_ATTRIBUTES = frozenset(
    {"href", "src", "action", "formaction", "background", "poster", "cite", "data", "longdesc", "xlink:href"}
    | {"lowsrc", "dynsrc", "ping", "manifest", "icon", "profile", "codebase", "classid", "usemap"}
)
# Finds every target that could be refused, and some others, in a tenth of the time that reading all attributes takes:
# it begins oddly, or has a colon (or what may stand for one) before the first slash. Styles are full of colons, and
# texts for people, which are no targets either, of references. The "=" comes first: it is what the search looks for.
_SUSPECT = re.compile(
    "=(?<![sS][tT][yY][lL][eE]=)(?<![aA][lL][tT]=)(?<![tT][iI][tT][lL][eE]=)\\s*+[\"']?+\\s*+(?!https?://|mailto:|cid:)"
    "(?:[^a-zA-Z0-9#?\"'<>]|[^\"'<>=/?#]*[:&\\\\\ufe13\ufe55\uff1a\u2a74])"
)
_RASTER = re.compile(r"data:image/(?:png|jpe?g|gif|webp)[;,]", re.IGNORECASE)
# Readers skip some of these inside a scheme, some around it; nobody needs any there.
_SKIPPED = re.compile(
    f"[{CONTROLS} \xa0\xad\u034f\u061c\u115f\u1160\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\ufeff]"
)
_HEAD = re.compile(r"[^/?#\\]*")
_WRITTEN = re.compile(r"[\"'=(]\s*([a-z][a-z0-9+.-]*):(?!\s)")
_WRITTEN_RELATIVE = re.compile(r"=\s*[\"']?//")

_STAND_IN = re.compile(STAND_IN)
_TAG_NAME = re.compile(r"</?[a-zA-Z][^\t\n\f\r />]*")
_NAME_FROM_VALUE = re.compile(f"</?(?:[a-zA-Z][^\\t\\n\\f\\r />]*)?{FIRST_STAND_IN}")


def link_scheme(target: str) -> str | None:
    """Return the lower-case scheme a mail client may find in ``target``; None if relative, ``//`` without a scheme.

    Judge like the most lenient client: blanks, controls and invisible characters are skipped, full-width letters and
    colons count as plain ones.
    """
    compact = _SKIPPED.sub("", target)
    if not compact.isascii():
        compact = _SKIPPED.sub("", unicodedata.normalize("NFKC", compact[:100]))
    if compact[:2] in {"//", "\\\\", "/\\", "\\/"}:
        return _PROTOCOL_RELATIVE
    match = _HEAD.match(compact)
    head = match[0] if match else ""
    scheme, colon, _ = head.partition(":")
    return scheme.lower() if colon else None


def written_schemes(source: str) -> set[str]:
    """Return the schemes of link targets in a template's source, so that its author's own links are kept."""
    found = set(_WRITTEN.findall(source.lower())) - _NEVER
    if _WRITTEN_RELATIVE.search(source):
        found.add(_PROTOCOL_RELATIVE)
    return found


def guard_links(html: str, *, written: Collection[str] = ()) -> tuple[str, list[str]]:
    """Return ``html`` without link targets of foreign schemes, and the schemes that were taken out.

    Kept are relative targets, `SCHEMES`, and the schemes ``written`` by the template's author; script schemes never,
    ``data:`` only for raster images. The attribute goes, the element and its text stay.
    """
    if _SUSPECT.search(html) is None:
        return html, []
    kept: list[str] = []
    removed: list[str] = []
    copied = 0
    for attribute in _attributes(html):
        if attribute.name not in _URL_ATTRIBUTES:
            continue
        target = unescape(attribute.value)
        foreign = _foreign(target, written) or _foreign(unescape(target), written)
        if foreign is not None:
            removed.append(foreign)
            kept.append(html[copied : attribute.start])
            copied = attribute.end
    kept.append(html[copied:])
    return "".join(kept), removed


def quote_stand_ins(html: str) -> str:
    """Put quotes around bare attribute values with stand-ins, and take out attributes that a value would name.

    A tag that a value would name becomes text.
    """
    html = _TAG_NAME.sub(lambda tag: tag[0].replace("<", "&lt;") if _STAND_IN.search(tag[0]) else tag[0], html)
    kept: list[str] = []
    copied = 0
    for attribute in _attributes(html):
        if _STAND_IN.search(attribute.name):
            kept.append(html[copied : attribute.start])
            copied = attribute.end
        elif not attribute.quoted and _STAND_IN.search(attribute.value):
            escaped = attribute.value.replace('"', "&quot;")
            kept.append(f'{html[copied : attribute.value_start]}"{escaped}"')
            copied = attribute.end
    kept.append(html[copied:])
    return "".join(kept)


def unquoted_stand_in(html: str) -> int | None:
    """Return where the first attribute value begins that has a stand-in and no quotation marks; None for none."""
    unquoted = (attribute for attribute in _attributes(html) if not attribute.quoted)
    return next((attribute.value_start for attribute in unquoted if _STAND_IN.search(attribute.value)), None)


def naming_stand_in(html: str) -> int | None:
    """Return where the first tag or attribute begins that the first stand-in would name; None for none."""
    tag = _NAME_FROM_VALUE.search(html)
    attribute = next((found.start for found in _attributes(html) if FIRST_STAND_IN in found.name), None)
    return min((place for place in (tag and tag.start(), attribute) if place is not None), default=None)


def _foreign(target: str, written: Collection[str]) -> str | None:
    scheme = link_scheme(target)
    if scheme is None or scheme in SCHEMES:
        return None
    if scheme == "data":
        return None if "data" in written and _RASTER.match(target.strip()) else scheme
    return None if scheme in written else scheme


def _attributes(html: str) -> Iterator[Attribute]:
    """Yield the attributes of all start tags in order, also in comments, which Outlook reads (``<!--[if mso]>``)."""
    for tag in read_tags(html):
        if tag.kind == "start":
            yield from attributes(html, tag)
        elif tag.kind == "comment":
            for inside in read_tags(html, tag.inner_start, tag.inner_end):
                if inside.kind == "start":
                    yield from attributes(html, inside)
