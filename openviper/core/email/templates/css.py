"""Move the rules of style sheets into ``style`` attributes, which all mail clients follow."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from openviper.conf.imports import require
from openviper.markup import Tag, attribute_text, attributes, describe_excess, read_tags

__all__ = ["CssNotInlined", "inline_css", "load_inliner"]

_IGNORE = ' data-css-inline="ignore"'  # css-inline's own mark; taken out again
_SHOWN_IN_MAIL = frozenset({"", "all", "screen"})
_IMPORTANT = re.compile(r"([-\w]+)(\s*:[^;]*?)\s*!\s*important\s*(?=;|$)", re.IGNORECASE)
_CSS_TYPES = frozenset({"", "text/css"})


class CssNotInlined(ValueError):
    """The style sheets of an HTML document cannot be inlined; the text says why and what to do."""


@functools.cache
def load_inliner() -> Any:
    """Return css-inline's inliner, which threads may share; the first call imports it, so call it in a thread.

    Raises:
        MissingDependency: css-inline is not installed.
    """
    library = require("css_inline", extra="css", purpose='EMAIL["inline_css"]')
    # The library's defaults discard every rule that no attribute can hold, and links to other style sheets.
    return library.CSSInliner(
        keep_style_tags=True, remove_inlined_selectors=True, keep_link_tags=True, load_remote_stylesheets=False
    )


def inline_css(html: str) -> str:
    """Return ``html`` with its rules in ``style`` attributes; files and the network are never read.

    Rules that cannot be inlined stay in ``<style>``: ``@media`` and other at-rules, pseudo-classes, selectors that
    match nothing yet, and whole sheets for another medium or in another language than CSS.

    Raises:
        CssNotInlined: the HTML nests too deep, or has CSS that cannot be inlined.
        MissingDependency: css-inline is not installed.
    """
    excess = describe_excess(html)
    if excess is not None:
        raise CssNotInlined(
            f"its CSS cannot be inlined, because in the rendered HTML {excess}: "
            'close the elements, or turn EMAIL["inline_css"] off'
        )
    try:
        inlined = str(load_inliner().inline(_with_conditional_sheets_marked(html)))
    except ValueError as error:
        raise CssNotInlined(f"its CSS cannot be inlined: {error}") from error
    return _without_moved_importance(inlined.replace(f"<style{_IGNORE}", "<style"), html)


def _without_moved_importance(inlined: str, html: str) -> str:
    """Drop ``!important`` from what was moved: in an attribute it would beat every rule that stays, @media included.

    It has done its work when the values were chosen. Properties that ``html`` itself marks in an attribute keep it.
    """
    if "important" not in inlined:
        return inlined
    own = {match[1].lower() for _, value in _style_attributes(html) for match in _IMPORTANT.finditer(value)}
    pieces: list[str] = []
    position = 0
    for start, value in _style_attributes(inlined):
        kept = _IMPORTANT.sub(
            lambda match: match[0] if match[1].lower() in own else match[0][: match.end(2) - match.start()], value
        )
        pieces += [inlined[position:start], kept]
        position = start + len(value)
    return "".join([*pieces, inlined[position:]])


def _style_attributes(html: str) -> Iterator[tuple[int, str]]:
    """Yield where the value of each ``style`` attribute begins, and the value."""
    for tag in read_tags(html):
        if tag.kind == "start":
            for attribute in attributes(html, tag):
                if attribute.name == "style":
                    yield attribute.value_start + attribute.quoted, attribute.value


def _with_conditional_sheets_marked(html: str) -> str:
    """Mark style sheets that do not always apply, whose rules the library would take for unconditional ones."""
    pieces: list[str] = []
    position = 0
    for tag in read_tags(html):
        if tag.kind == "start" and tag.name == "style" and _is_conditional(html, tag):
            end = tag.start + len("<style")
            pieces += [html[position:end], _IGNORE]
            position = end
    return "".join([*pieces, html[position:]])


def _is_conditional(html: str, tag: Tag) -> bool:
    found: dict[str, str] = {}
    for attribute in attributes(html, tag):
        found.setdefault(attribute.name, attribute_text(attribute.value).strip().lower())
    media = {query.strip() for query in found.get("media", "").split(",")}
    return media.isdisjoint(_SHOWN_IN_MAIL) or found.get("type", "") not in _CSS_TYPES
