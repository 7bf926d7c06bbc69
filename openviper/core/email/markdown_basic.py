"""The little Markdown that is converted where python-markdown is not installed."""

import re
from html import escape

from openviper.core.email.template_values import STAND_IN, autolink

__all__ = ["basic_html"]

_HEADING = re.compile(r"(#{1,6})[ \t]+(.*)")
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]*)\)")
_VALUE_LINK = re.compile(f"&lt;({STAND_IN})&gt;")


def basic_html(source: str) -> str:
    """HTML for headings, paragraphs and inline links; everything else is text, raw HTML as well."""
    parts: list[str] = []
    paragraph: list[str] = []

    def end_paragraph() -> None:
        if paragraph:
            parts.append(f"<p>{_inline(' '.join(paragraph))}</p>")
            paragraph.clear()

    for line in source.splitlines():
        heading = _HEADING.match(line)
        if heading:
            end_paragraph()
            level = len(heading[1])
            title = heading[2].rstrip(" \t#")
            parts.append(f"<h{level}>{_inline(title)}</h{level}>")
        elif line.strip():
            paragraph.append(line.strip())
        else:
            end_paragraph()
    end_paragraph()
    return "\n".join(parts)


def _inline(text: str) -> str:
    linked = _LINK.sub(r'<a href="\2">\1</a>', escape(text))
    return _VALUE_LINK.sub(lambda match: autolink(match[1]), linked)
