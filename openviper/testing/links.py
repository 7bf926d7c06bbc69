"""Find the links that a message's reader can follow."""

import re
from collections.abc import Iterator

from openviper.markup import attribute_text, attributes, read_tags

__all__ = ["links_in"]

_URL = re.compile(r"https?://[^\s<>\"]+")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_NO_PAGES = ("mailto:", "tel:", "sms:", "cid:", "data:", "javascript:")
# Characters after a URL in text that belong to the sentence, not to the URL.
_PUNCTUATION = ".,;:!?'*_"
_BRACKETS = {")": "(", "]": "["}


def links_in(html: str | None, text: str | None) -> list[str]:
    """Return the HTML's absolute links, then the URLs of the text, each once; without mailto:, tel: and the like."""
    found = [*_of_html(html or ""), *map(_without_end, _URL.findall(text or ""))]
    return list(dict.fromkeys(found))


def _of_html(html: str) -> Iterator[str]:
    for tag in read_tags(html):
        if tag.kind != "start" or tag.name not in ("a", "area"):
            continue
        href = next((attribute.value for attribute in attributes(html, tag) if attribute.name == "href"), "")
        target = attribute_text(href).strip()
        if _ABSOLUTE.match(target) and not target.lower().startswith(_NO_PAGES):
            yield target


def _without_end(url: str) -> str:
    while url[-1] in _PUNCTUATION or (url[-1] in _BRACKETS and url.count(_BRACKETS[url[-1]]) < url.count(url[-1])):
        url = url[:-1]
    return url
