"""Lay out each HTML element as plain text: the steps at its start and at its end."""

import re
from collections.abc import Callable, Mapping

from openviper.core.email.message.plaintext.layout import TextLayout
from openviper.markup import declarations, is_hidden

__all__ = ["BY_ATTRIBUTE", "DROPPED", "ON_ENTERING", "ON_LEAVING", "Reading", "Step", "is_left_out"]

Step = Callable[[TextLayout], None]
Reading = Callable[[TextLayout, str], None]

DROPPED = frozenset(
    {"script", "style", "template", "title", "meta", "link", "noembed", "noframes", "iframe", "object", "embed", "svg"}
    | {"math", "audio", "video", "canvas", "select", "datalist", "input", "textarea"}
)
_LINE_BLOCKS = frozenset(
    {"address", "article", "aside", "caption", "center", "details", "dialog", "div", "dt", "fieldset", "figcaption"}
    | {"figure", "footer", "form", "header", "hgroup", "legend", "main", "map", "nav", "section", "summary", "tr"}
)
_PARAGRAPHS = frozenset(("dl", "h1", "h2", "h3", "h4", "h5", "h6", "p"))


def is_left_out(tag: str, attributes: Mapping[str, str | None]) -> bool:
    """True if a reader sees nothing of an element with these attributes, whatever is in it.

    A link with ``mso-hide: all`` is shown: it is a button of which Outlook gets another copy, in a comment.
    """
    style = attributes.get("style") or ""
    if "hidden" in attributes and "display" not in declarations(style):
        return True
    return bool(style) and is_hidden(style) and not (tag == "a" and _hidden_in_outlook_only(style))


def _hidden_in_outlook_only(style: str) -> bool:
    return not is_hidden(
        ";".join(f"{name}:{value}" for name, value in declarations(style).items() if name != "mso-hide")
    )


def _item(layout: TextLayout, value: str) -> None:
    layout.open_item(_number(value, default=None))


def _numbered(layout: TextLayout, start: str) -> None:
    layout.open_list(first=_number(start, default=1))


def _table(layout: TextLayout, role: str) -> None:
    layout.open_table(for_layout=role.strip().lower() in {"presentation", "none"})


def _quote_mark(layout: TextLayout) -> None:
    layout.write('"')


def _number(value: str, *, default: int | None) -> int | None:
    text = value.strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else default


ON_ENTERING: dict[str, Step] = {
    **dict.fromkeys(_LINE_BLOCKS, TextLayout.begin_line),
    **dict.fromkeys(_PARAGRAPHS, TextLayout.begin_paragraph),
    **dict.fromkeys(("ul", "menu", "dir"), TextLayout.open_list),
    "blockquote": TextLayout.open_quote,
    "br": TextLayout.end_line,
    "dd": TextLayout.open_indent,
    "hr": TextLayout.rule,
    "th": TextLayout.open_header_cell,
    "pre": TextLayout.open_pre,
    "q": _quote_mark,
    "tr": TextLayout.open_row,
}
BY_ATTRIBUTE: dict[str, tuple[str, Reading]] = {
    "a": ("href", TextLayout.open_link),
    "img": ("alt", TextLayout.write_image),
    "li": ("value", _item),
    "ol": ("start", _numbered),
    "td": ("width", TextLayout.open_cell),
    "table": ("role", _table),
}
ON_LEAVING: dict[str, Step] = {
    **dict.fromkeys(_LINE_BLOCKS, TextLayout.begin_line),
    **dict.fromkeys(_PARAGRAPHS, TextLayout.begin_paragraph),
    **dict.fromkeys(("ol", "ul", "menu", "dir"), TextLayout.close_list),
    **dict.fromkeys(("li", "dd"), TextLayout.close_indent),
    "a": TextLayout.close_link,
    "blockquote": TextLayout.close_quote,
    "pre": TextLayout.close_pre,
    "q": _quote_mark,
    "table": TextLayout.close_table,
    "tr": TextLayout.close_row,
}
