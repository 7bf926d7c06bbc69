"""Find every feature that an HTML part uses, where, and what a reader loses in a client that lacks it."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from openviper.core.email.lint.contrast import CLEAR, PAGE, Colours
from openviper.core.email.lint.css_features import (
    at_rule_features,
    declaration_features,
    holds_styles,
    image_addresses,
    selector_features,
)
from openviper.core.email.lint.html_features import element_features, image_features, srcset_addresses
from openviper.core.email.lint.partial import (
    LONGEST_STYLE,
    STYLE_IN_BODY,
    STYLE_TOO_LONG,
    attribute_keeps_within,
    declaration_keeps_within,
    passed_limit,
)
from openviper.core.email.lint.remote_content import attribute_values
from openviper.markup import Tag, read_tags
from openviper.markup.stylesheet import Declaration, Rule, read_declarations, read_stylesheet

__all__ = ["Use", "find_uses"]

_VOID_NAMES = "area base br col embed hr img input link meta param source track wbr basefont bgsound frame keygen"
_VOID = frozenset(_VOID_NAMES.split())
_FIELDS = {
    "html-input-checkbox": "readers cannot tick it",
    "html-input-radio": "readers cannot choose it",
    "html-input-text": "readers cannot fill it in",
    "html-textarea": "readers cannot fill it in",
    "html-select": "readers cannot choose from it",
    "html-input-submit": "readers cannot send the form",
    "html-button-submit": "readers cannot send the form",
}
_WITH_FALLBACK = {
    "video": "the video is lost, and there is nothing in its place: put an image with a link inside the element",
    "audio": "the sound is lost, and there is nothing in its place: put a link inside the element",
    "object": "the object is lost, and there is nothing in its place: put an image or a text inside the element",
    "meter": "its value is lost: write it inside the element",
    "progress": "its value is lost: write it inside the element",
}
_SVG = "the drawing is removed: send an image with alternative text in its place"
_IMAGE = "the image is lost: send it as PNG or JPEG"
_ONLY_SRCSET = "the image is lost: give its address as src as well"
_DATA = "the image is lost: attach it as an inline image (cid:) or link to it"
_MAP = "the links in the image cannot be followed: add them as text"
_GENERATED = "the text that it adds is lost: write it in the HTML"
_STAYS_HIDDEN = "what it starts to show stays hidden: let the element be visible without the animation"
_REVEALED = "what it shows stays hidden: show it without a selector that needs an action"
_UNREADABLE = "the text is as light or as dark as the background that remains: give a plain colour as well"
_CLEAR = (
    "the text is transparent, and no background is behind it: give its colour as color, and the transparent one as "
    "-webkit-text-fill-color"
)
_FORM = "readers cannot send the form: link to a page that has it"
_IMAGE_FORMATS_SHOWN_IN_PART = frozenset({"image-apng"})  # its first picture is shown

_REVEALS = frozenset(f"css-pseudo-class-{name}" for name in ("checked", "focus", "focus-within", "hover", "target"))
_HIDES = re.compile(r"display\s*+:\s*+none|visibility\s*+:\s*+hidden|(?:opacity|max-height)\s*+:\s*+0(?![.\d])")
_GENERATES = frozenset({"css-pseudo-element-after", "css-pseudo-element-before"})
_STRING = re.compile(r"\"((?:[^\"\\]|\\.)*+)\"|'((?:[^'\\]|\\.)*+)'", re.DOTALL)
_ESCAPE = re.compile(r"\\[0-9a-f]{1,6} ?", re.IGNORECASE)
_ZERO = re.compile(r"0*\.?0*(?:px|%)?")
_OF_THE_HEAD = frozenset({"base", "head", "html", "link", "meta", "noscript", "script", "style", "template", "title"})
_NOT_FOR_OUTLOOK = re.compile(r"\[if\s++!\s*+(?:\(\s*+)?mso\b", re.IGNORECASE)
_ENDIF = re.compile(r"<!\[endif\]", re.IGNORECASE)


class Use(NamedTuple):
    """One use of a feature, at ``position`` of the HTML.

    ``loss``: what a reader loses in a client without it; empty where the message is only less fine. ``outlook``: False
    inside ``<!--[if !mso]><!-->``, which Outlook on Windows does not read. ``within``: True for a use that clients with
    partial support show, but for those whose limit it passes: ``limit``, a part of their note.
    """

    feature: str
    position: int
    loss: str
    outlook: bool
    within: bool
    limit: str = ""


def find_uses(html: str, inline: Mapping[str, str]) -> list[Use]:
    """Return the uses of features in document order. The time is proportional to the length; use a thread.

    ``inline`` has the MIME type of each inline attachment by the name in its ``cid:`` address. Content of
    ``<!--[if mso]>`` and of ``<svg>`` is not looked at.
    """
    return _Reader(html, inline).read()


@dataclass(slots=True)
class _Fallback:
    """An element whose content is shown in clients that lack it."""

    name: str
    use: int
    found: bool = False


@dataclass(slots=True)
class _Reader:
    html: str
    inline: Mapping[str, str]
    uses: list[Use] = field(default_factory=list)
    outlook: bool = True
    hides: bool = False
    in_body: bool = False
    page_image: bool = False
    form: int | None = None
    svg: int = 0
    pictures: int = 0
    fallbacks: list[_Fallback] = field(default_factory=list)
    open: list[tuple[str, Colours]] = field(default_factory=list)

    def read(self) -> list[Use]:
        self.hides = _HIDES.search(self.html.lower()) is not None
        position = 0
        style: Tag | None = None
        for tag in read_tags(self.html):
            if style is not None:
                self._style_sheet(style, tag.start)
                style = None
            elif self.fallbacks and self.html[position : tag.start].strip():
                self._content()
            position = tag.end
            if tag.kind == "comment":
                self._comment(tag)
            elif tag.kind == "end":
                self._end(tag.name)
            elif tag.kind == "start" and tag.complete:
                values = self._start(tag)
                style = tag if tag.name == "style" and not self.svg and _is_css(values) else None
        if style is not None:
            self._style_sheet(style, len(self.html))
        return self.uses

    def _add(
        self, features: Iterable[str], position: int, loss: str = "", *, within: bool = False, limit: str = ""
    ) -> None:
        self.uses += [Use(feature, position, loss, self.outlook, within, limit) for feature in sorted(features)]

    def _comment(self, tag: Tag) -> None:
        text = self.html[tag.start : tag.end]
        if text[:14].lower().startswith("<!doctype html"):
            self._add(["html-doctype"], tag.start)
        elif text.startswith("<!--"):
            self._add(["html-comments"], tag.start)
        # <!--[if !mso]><!--> and <![if !mso]> begin what Outlook skips; their ends are alike.
        if _ENDIF.search(text):
            self.outlook = True
        elif _NOT_FOR_OUTLOOK.search(text):
            self.outlook = False

    def _end(self, name: str) -> None:
        if name == "svg":
            self.svg = max(self.svg - 1, 0)
        elif name == "form":
            self.form = None
        elif name == "picture":
            self.pictures = max(self.pictures - 1, 0)
        elif self.fallbacks and self.fallbacks[-1].name == name:
            fallback = self.fallbacks.pop()
            if fallback.found:
                self.uses[fallback.use] = self.uses[fallback.use]._replace(loss="")
                self._content()
        for depth, (opened, _) in enumerate(reversed(self.open[-100:]), start=1):
            if opened == name:
                del self.open[-depth:]
                break

    def _content(self) -> None:
        for fallback in reversed(self.fallbacks):
            if fallback.found:
                break  # and so have all around it
            fallback.found = True

    def _start(self, tag: Tag) -> Mapping[str, str]:
        """Add what a start tag uses, and return its attributes; of those inside a drawing none."""
        name = tag.name
        if self.svg:
            self.svg += name == "svg" and not tag.self_closing
            return {}
        values = attribute_values(self.html, tag)
        if name == "svg":
            self._drawing(tag, values)
            return values
        self.pictures += name == "picture"
        self.in_body = self.in_body or name not in _OF_THE_HEAD
        found = element_features(name, values)
        if name in _WITH_FALLBACK:
            slug = f"html-{name}"
            self.fallbacks.append(_Fallback(name, len(self.uses)))
            self._add([slug], tag.start, _WITH_FALLBACK[name])
            found.discard(slug)
        elif name in ("img", "a", "table"):
            self._content()
        self._features(tag, values, found)
        self._images(tag, values)
        declarations = self._style_attribute(tag, values.get("style", ""))
        self._colours(tag, values, declarations)
        return values

    def _features(self, tag: Tag, values: Mapping[str, str], found: Collection[str]) -> None:
        """Add the features of a tag, but for those of an element with a fallback."""
        if tag.name == "form":
            self.form = len(self.uses) + sorted(found).index("html-form")
        for slug in sorted(found):
            loss = _FIELDS.get(slug, "")
            if loss and self.form is not None:
                self.uses[self.form] = self.uses[self.form]._replace(loss=_FORM)
            elif tag.name == "area" and slug == "html-image-maps":
                loss = _MAP
            elif slug == "html-srcset" and tag.name == "img" and not values.get("src", "").strip():
                loss = "" if _is_decoration(values) else _ONLY_SRCSET
            elif slug == "html-style":
                self._style_element(tag)
                continue
            within = attribute_keeps_within(slug, tag.name, values)
            self._add([slug], tag.start, loss, within=within, limit=passed_limit(slug, "", tag.name))

    def _style_element(self, tag: Tag) -> None:
        self._add(["html-style"], tag.start, limit=STYLE_IN_BODY if self.in_body else "")

    def _drawing(self, tag: Tag, values: Mapping[str, str]) -> None:
        self.svg += not tag.self_closing
        decoration = values.get("aria-hidden") == "true" or values.get("role") in ("none", "presentation")
        self._add(["html-svg"], tag.start, "" if decoration else _SVG)
        self._add(element_features("", {name: "" for name in values if name.startswith("aria-")}), tag.start)

    def _images(self, tag: Tag, values: Mapping[str, str]) -> None:
        if tag.name == "img":
            source = values.get("src", "")
            for slug in sorted(image_features(source, self.inline)):
                loss = "" if _is_decoration(values) or slug in _IMAGE_FORMATS_SHOWN_IN_PART else _IMAGE
                data = slug == "image-base64"
                limit = passed_limit(slug, source)
                self._add([slug], tag.start, _DATA if loss and data else loss, within=data, limit=limit)
        addresses = srcset_addresses(values.get("srcset", ""))
        if "background" in values:
            addresses.append(values["background"])
        for address in addresses:
            self._add(image_features(address, self.inline), tag.start)

    def _style_attribute(self, tag: Tag, style: str) -> tuple[Declaration, ...]:
        if not style:
            return ()
        declarations, comments = read_declarations(style)
        if comments:
            self._add(["css-comments"], tag.start)
        self._declarations(declarations, tag.start, tag.name)
        return declarations

    def _declarations(self, declarations: tuple[Declaration, ...], position: int, element: str = "") -> None:
        animated = _begins_hidden(declarations)
        exact = any(declaration.name == "mso-line-height-rule" for declaration in declarations)
        for declaration in declarations:
            value = declaration.value
            for slug in sorted(declaration_features(declaration)):
                loss = _STAYS_HIDDEN if animated and slug == "css-animation" else ""
                within = declaration_keeps_within(slug, value, element) or (exact and slug == "css-line-height")
                self._add([slug], position, loss, within=within, limit=passed_limit(slug, value))
            for address in image_addresses(declaration.value):
                self._add(image_features(address, self.inline), position)

    def _colours(self, tag: Tag, values: Mapping[str, str], declarations: tuple[Declaration, ...]) -> None:
        around = self.open[-1][1] if self.open else PAGE
        if "background" in values:
            self.page_image = tag.name == "body"
        colours = around.inside(declarations, values)
        if colours is not around and colours != around:
            self._unreadable(colours, tag.start)
        if tag.name not in _VOID and not tag.self_closing:
            self.open.append((tag.name, colours))

    def _unreadable(self, colours: Colours, position: int) -> None:
        lacks = colours.unreadable_without()
        if colours.text == CLEAR:
            # Outlook on Windows does not know transparent as a colour, and shows the text.
            self.uses += [Use(feature, position, _CLEAR, outlook=False, within=False) for feature in sorted(lacks)]
        else:
            for feature in sorted(lacks):
                within = self.page_image and feature == "html-background"
                limit = "" if within else passed_limit(feature, "")
                self._add([feature], position, _UNREADABLE, within=within, limit=limit)

    def _style_sheet(self, tag: Tag, end: int) -> None:
        start = tag.end
        if end - start > LONGEST_STYLE:
            self._add(["html-style"], tag.start, limit=STYLE_TOO_LONG)
        sheet = read_stylesheet(self.html[start:end])
        if sheet.comments:
            self._add(["css-comments"], start)
        for rule in sorted(sheet.rules, key=lambda rule: rule.start):
            self._rule(rule, start + rule.start)

    def _rule(self, rule: Rule, position: int) -> None:
        if rule.prelude.startswith("@"):
            self._add(at_rule_features(rule.prelude), position)
            if not holds_styles(rule.prelude):
                return
        elif not any("keyframes" in around.lower() for around in rule.inside):
            self._selector(rule, position)
        self._declarations(rule.declarations, position)
        if not rule.inside:
            self._unreadable(PAGE.inside(rule.declarations, {}), position)

    def _selector(self, rule: Rule, position: int) -> None:
        nested = any(not around.startswith("@") for around in rule.inside)
        if nested or "&" in rule.prelude:
            self._add(["css-nesting"], position)
        generates = any(_adds_text(declaration) for declaration in rule.declarations)
        reveals = self.hides and any(_shows(declaration) for declaration in rule.declarations)
        for slug in sorted(selector_features(rule.prelude)):
            loss = _GENERATED if generates and slug in _GENERATES else _REVEALED if reveals and slug in _REVEALS else ""
            self._add([slug], position, loss)


def _is_decoration(image: Mapping[str, str]) -> bool:
    return image.get("alt", "?").strip() == "" or image.get("aria-hidden") == "true"


def _is_css(style: Mapping[str, str]) -> bool:
    return style.get("type", "").strip().lower() in ("", "text/css")


def _begins_hidden(declarations: Iterable[Declaration]) -> bool:
    return any(
        (name == "opacity" and _ZERO.fullmatch(value) is not None) or (name == "visibility" and value == "hidden")
        for name, value, _ in declarations
    )


def _adds_text(declaration: Declaration) -> bool:
    """True for a ``content`` with letters or digits; symbols and blanks are decoration."""
    if declaration.name != "content":
        return False
    texts = ("".join(match) for match in _STRING.findall(declaration.value))
    return "attr(" in declaration.value or any(letter.isalnum() for text in texts for letter in _ESCAPE.sub("", text))


def _shows(declaration: Declaration) -> bool:
    name, value, _ = declaration
    value = value.lower()
    return (
        (name == "display" and value != "none")
        or (name == "visibility" and value == "visible")
        or (name in ("opacity", "max-height") and _ZERO.fullmatch(value) is None)
    )
