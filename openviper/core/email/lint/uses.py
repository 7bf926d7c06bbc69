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
    selected_names,
    selector_features,
)
from openviper.core.email.lint.html_features import element_features, image_features, srcset_addresses
from openviper.core.email.lint.losses import (
    DATA_LOST,
    FIELDS,
    FORM_LOST,
    GENERATED_LOST,
    IMAGE_LOST,
    MAP_LOST,
    SRCSET_LOST,
    STAYS_COVERED,
    STAYS_HIDDEN,
    SVG_REMOVED,
    TRANSPARENT,
    UNREADABLE,
    WITH_FALLBACK,
)
from openviper.core.email.lint.partial import (
    LONGEST_STYLE,
    STYLE_IN_BODY,
    STYLE_TOO_LONG,
    attribute_keeps_within,
    declaration_keeps_within,
    important_limits,
    passed_limits,
)
from openviper.core.email.lint.remote_content import attribute_values
from openviper.core.email.lint.visibility import adds_text, begins_hidden, hides, shows
from openviper.markup import Tag, is_hidden, read_tags
from openviper.markup.stylesheet import Declaration, Rule, read_declarations, read_stylesheet
from openviper.markup.tags import RAW_TEXT

__all__ = ["Use", "find_uses"]

_VOID_NAMES = "area base br col embed hr img input link meta param source track wbr basefont bgsound frame keygen"
_VOID = frozenset(_VOID_NAMES.split())
_IMAGE_FORMATS_SHOWN_IN_PART = frozenset({"image-apng"})  # its first picture is shown

_REVEALS = frozenset(f"css-pseudo-class-{name}" for name in ("checked", "focus", "focus-within", "hover", "target"))
_GENERATES = frozenset({"css-pseudo-element-after", "css-pseudo-element-before"})
_OF_THE_HEAD = frozenset({"base", "head", "html", "link", "meta", "noscript", "script", "style", "template", "title"})
_FOR_OUTLOOK = re.compile(r"\[if\b(?![^\]]{0,99}!)[^\]]{0,99}\bmso\b", re.IGNORECASE)
_VML = re.compile(r"<(/?)v:(?:background|oval|rect|roundrect|shape)\b([^<>]*+)>", re.IGNORECASE)
_BLANKS = re.compile(r"(?:\s|&(?:nbsp|zwnj|zwj|shy|#(?:160|173|847|8199|8203|x0*a0));?)*+", re.IGNORECASE)
_NOT_FOR_OUTLOOK = re.compile(r"\[if\s++!\s*+(?:\(\s*+)?mso\b", re.IGNORECASE)
_ENDIF = re.compile(r"<!\[endif\]", re.IGNORECASE)


class Use(NamedTuple):
    """One use of a feature, at ``position`` of the HTML.

    ``loss``: what a reader loses in a client without it; empty where the message is only less fine. ``outlook``: False
    inside ``<!--[if !mso]><!-->``, which Outlook on Windows does not read. ``within``: True for a use that clients with
    partial support show, but for those with one of ``limits``, which are parts of their notes that it passes.
    """

    feature: str
    position: int
    loss: str
    outlook: bool
    within: bool
    limits: tuple[str, ...] = ()


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
class _Shade:
    """The colours of an element, at ``start``, and of those inside it that have no others.

    ``judged``: True once a text was found in it.
    """

    colours: Colours
    start: int
    judged: bool = False


@dataclass(slots=True)
class _Reader:
    html: str
    inline: Mapping[str, str]
    uses: list[Use] = field(default_factory=list)
    outlook: bool = True
    vml: int = 0
    hidden: set[str] = field(default_factory=set)
    revealed: list[tuple[int, set[str]]] = field(default_factory=list)
    in_body: bool = False
    page_image: bool = False
    form: int | None = None
    svg: int = 0
    pictures: int = 0
    fallbacks: list[_Fallback] = field(default_factory=list)
    open: list[tuple[str, _Shade]] = field(default_factory=list)

    def read(self) -> list[Use]:
        position = 0
        style: Tag | None = None
        for tag in read_tags(self.html):
            self._between(style, position, tag.start)
            style = None
            position = tag.end
            if tag.kind == "comment":
                self._comment(tag)
            elif tag.kind == "end":
                self._end(tag.name)
            elif tag.kind == "start" and tag.complete:
                values = self._start(tag)
                style = tag if tag.name == "style" and not self.svg and _is_css(values) else None
        self._between(style, position, len(self.html))
        for number, names in self.revealed:
            if "*" in names or not names.isdisjoint(self.hidden):
                self.uses[number] = self.uses[number]._replace(loss=STAYS_COVERED)
        return sorted(self.uses, key=lambda use: use.position)

    def _between(self, style: Tag | None, start: int, end: int) -> None:
        """Take the text between two tags: a style sheet, or one for readers."""
        if style is not None:
            self._style_sheet(style, end)
        elif start < end and not self.svg and _BLANKS.fullmatch(self.html, start, end) is None:
            if self.fallbacks:
                self._content()
            if self.open and self.open[-1][0] not in RAW_TEXT and not self.open[-1][1].judged:
                shade = self.open[-1][1]
                shade.judged = True
                self._unreadable(shade.colours, shade.start)

    def _add(
        self,
        features: Iterable[str],
        position: int,
        loss: str = "",
        *,
        within: bool = False,
        limits: tuple[str, ...] = (),
    ) -> None:
        self.uses += [Use(feature, position, loss, self.outlook, within, limits) for feature in sorted(features)]

    def _comment(self, tag: Tag) -> None:
        text = self.html[tag.start : tag.end]
        if text[:14].lower().startswith("<!doctype html"):
            self._add(["html-doctype"], tag.start)
        elif text.startswith("<!--"):
            self._add(["html-comments"], tag.start)
        if _FOR_OUTLOOK.search(text):
            for closing, rest in _VML.findall(text):
                self.vml += -1 if closing else not rest.endswith("/")
            self.vml = max(self.vml, 0)
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
        if name in WITH_FALLBACK:
            slug = f"html-{name}"
            self.fallbacks.append(_Fallback(name, len(self.uses)))
            self._add([slug], tag.start, WITH_FALLBACK[name])
            found.discard(slug)
        elif name in ("img", "a", "table"):
            self._content()
        self._features(tag, values, found)
        self._images(tag, values)
        declarations = self._style_attribute(tag, values.get("style", ""))
        if any(hides(declaration) for declaration in declarations):
            self.hidden |= {name, f"#{values.get('id', '')}", *(f".{each}" for each in values.get("class", "").split())}
        self._colours(tag, values, declarations)
        return values

    def _features(self, tag: Tag, values: Mapping[str, str], found: Collection[str]) -> None:
        """Add the features of a tag, but for those of an element with a fallback."""
        if tag.name == "form":
            self.form = len(self.uses) + sorted(found).index("html-form")
        hidden = _is_hidden(values)
        for slug in sorted(found):
            loss = "" if hidden else FIELDS.get(slug, "")
            if loss and self.form is not None:
                self.uses[self.form] = self.uses[self.form]._replace(loss=FORM_LOST)
            elif tag.name == "area" and slug == "html-image-maps":
                loss = MAP_LOST
            elif slug == "html-srcset" and tag.name == "img" and not values.get("src", "").strip():
                loss = "" if _is_decoration(values) else SRCSET_LOST
            elif slug == "html-style":
                self._style_element(tag)
                continue
            within = attribute_keeps_within(slug, tag.name, values)
            self._add([slug], tag.start, loss, within=within, limits=passed_limits(slug, "", tag.name))

    def _style_element(self, tag: Tag) -> None:
        self._add(["html-style"], tag.start, limits=(STYLE_IN_BODY,) if self.in_body else ())

    def _drawing(self, tag: Tag, values: Mapping[str, str]) -> None:
        self.svg += not tag.self_closing
        decoration = values.get("aria-hidden") == "true" or values.get("role") in ("none", "presentation")
        self._add(["html-svg"], tag.start, "" if decoration else SVG_REMOVED)
        self._add(element_features("", {name: "" for name in values if name.startswith("aria-")}), tag.start)

    def _images(self, tag: Tag, values: Mapping[str, str]) -> None:
        if tag.name == "img":
            source = values.get("src", "")
            for slug in sorted(image_features(source, self.inline)):
                loss = "" if _is_decoration(values) or slug in _IMAGE_FORMATS_SHOWN_IN_PART else IMAGE_LOST
                data = slug == "image-base64"
                limits = passed_limits(slug, source)
                self._add([slug], tag.start, DATA_LOST if loss and data else loss, within=data, limits=limits)
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
        animated = begins_hidden(declarations)
        exact = any(declaration.name == "mso-line-height-rule" for declaration in declarations)
        for declaration in declarations:
            value = declaration.value
            for slug in sorted(declaration_features(declaration)):
                loss = STAYS_HIDDEN if animated and slug == "css-animation" else ""
                within = declaration_keeps_within(slug, value, element) or (exact and slug == "css-line-height")
                limits = passed_limits(slug, value)
                if slug == "css-important":
                    limits = important_limits(declaration, inline=bool(element))
                self._add([slug], position, loss, within=within, limits=limits)
            for address in image_addresses(declaration.value):
                self._add(image_features(address, self.inline), position)

    def _colours(self, tag: Tag, values: Mapping[str, str], declarations: tuple[Declaration, ...]) -> None:
        around = self.open[-1][1] if self.open else _Shade(PAGE, 0)
        if "background" in values:
            self.page_image = tag.name == "body"
        colours = around.colours.inside(declarations, values)
        if tag.name not in _VOID and not tag.self_closing:
            self.open.append((tag.name, around if colours == around.colours else _Shade(colours, tag.start)))

    def _unreadable(self, colours: Colours, position: int) -> None:
        # Outlook on Windows does not know transparent as a colour, and shows the text. VML gives it a background.
        outlook = self.outlook and not self.vml and colours.text != CLEAR
        loss = TRANSPARENT if colours.text == CLEAR else UNREADABLE
        for feature in sorted(colours.unreadable_without()):
            within = self.page_image and feature == "html-background"
            limits = () if within else passed_limits(feature, "")
            self.uses.append(Use(feature, position, loss, outlook, within, limits))

    def _style_sheet(self, tag: Tag, end: int) -> None:
        start = tag.end
        if end - start > LONGEST_STYLE:
            self._add(["html-style"], tag.start, limits=(STYLE_TOO_LONG,))
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
        if rule.inside:
            return
        if any(hides(declaration) for declaration in rule.declarations):
            self.hidden |= selected_names(rule.prelude, plain=True)
        # Where a rule gives no colour to the text, another may.
        if any(declaration.name == "color" for declaration in rule.declarations):
            self._unreadable(PAGE.inside(rule.declarations, {}), position)

    def _selector(self, rule: Rule, position: int) -> None:
        nested = any(not around.startswith("@") for around in rule.inside)
        if nested or "&" in rule.prelude:
            self._add(["css-nesting"], position)
        generates = any(adds_text(declaration) for declaration in rule.declarations)
        reveals = any(shows(declaration) for declaration in rule.declarations)
        for slug in sorted(selector_features(rule.prelude)):
            if reveals and slug in _REVEALS:
                self.revealed.append((len(self.uses), selected_names(rule.prelude, plain=False)))
            self._add([slug], position, GENERATED_LOST if generates and slug in _GENERATES else "")


def _is_decoration(image: Mapping[str, str]) -> bool:
    return image.get("alt", "?").strip() == "" or image.get("aria-hidden") == "true" or _is_hidden(image)


def _is_hidden(element: Mapping[str, str]) -> bool:
    return "hidden" in element or is_hidden(element.get("style", ""))


def _is_css(style: Mapping[str, str]) -> bool:
    return style.get("type", "").strip().lower() in ("", "text/css")
