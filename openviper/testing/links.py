"""Find the links that a message's reader can follow."""

import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple

from openviper.markup import Tag, attribute_text, attributes, read_tags
from openviper.text import find_urls

__all__ = ["Link", "labelled_links", "links_in"]

_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_NO_PAGES = ("mailto:", "tel:", "sms:", "cid:", "data:", "javascript:")


class Link(NamedTuple):
    """A link: the text that its reader sees, its white space collapsed, and its URL."""

    label: str
    url: str


def links_in(html: str | None, text: str | None) -> list[str]:
    """Return the HTML's absolute links, then the URLs of the text, each once; without mailto:, tel: and the like."""
    found = [*(link.url for link in _of_html(html or "")), *(found.url for found in find_urls(text or ""))]
    return list(dict.fromkeys(found))


def labelled_links(html: str | None, text: str | None) -> tuple[list[Link], list[Link]]:
    """Return the HTML's absolute links, and those of the text.

    A label in HTML is the element's text and the ``alt`` of its images. In text it is the line before the URL, or the
    paragraph's last line if the URL begins its own.
    """
    return list(_of_html(html or "")), list(_of_text(text or ""))


def _of_html(html: str) -> Iterator[Link]:
    url: str | None = None
    label: list[str] = []
    position, literal = 0, False
    for tag in read_tags(html):
        if not literal:
            label.append(unescape(html[position : tag.start]))
        position, literal = tag.end, tag.literal
        if tag.name == "img" and tag.kind == "start":
            label.append(_attribute(html, tag, "alt"))
        if tag.name not in ("a", "area"):
            continue
        if url is not None:
            yield Link(" ".join("".join(label).split()), url)
        url, label = (_target(html, tag) if tag.kind == "start" else None), []
        if url is not None and tag.name == "area":
            yield Link(_attribute(html, tag, "alt"), url)
            url = None
    if url is not None:
        yield Link(" ".join("".join([*label, unescape(html[position:])]).split()), url)


def _target(html: str, tag: Tag) -> str | None:
    """Return the absolute URL that a tag leads to; None without one."""
    target = _attribute(html, tag, "href").strip()
    return target if _ABSOLUTE.match(target) and not target.lower().startswith(_NO_PAGES) else None


def _attribute(html: str, tag: Tag, name: str) -> str:
    value = next((attribute.value for attribute in attributes(html, tag) if attribute.name == name), "")
    return attribute_text(value)


def _of_text(text: str) -> Iterator[Link]:
    before = ""
    for line in text.splitlines():
        end = 0
        for found in find_urls(line):
            label = " ".join(line[end : found.start].split()).strip(" :(<[-*>")
            yield Link(label or before, found.url)
            end = found.end
        if line.strip():
            before = " ".join(line.split()).rstrip(":") if not end else before
