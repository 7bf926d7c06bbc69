"""Check the bodies of a message: what readers without HTML get, links, images, active content, and the length."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from openviper.core.email.lint.css_features import holds_styles, image_addresses
from openviper.core.email.lint.findings import LintFinding
from openviper.core.email.lint.html_features import srcset_addresses
from openviper.core.email.lint.remote_content import attribute_values, is_remote, remote_styles
from openviper.core.email.templates.links import link_scheme
from openviper.markup import read_tags
from openviper.markup.stylesheet import Declaration, read_declarations, read_stylesheet

__all__ = ["CLIP_BYTES", "lint_bodies"]

CLIP_BYTES = 102 * 1024
"""Gmail clips a longer HTML part and links to the rest."""

_SHOWN = 3
_SCRIPTS = frozenset({"javascript", "vbscript", "data"})
_ACTIVE = frozenset({"script", "iframe", "object", "embed"})
# WHATWG HTML section 4.12.1: a script element of these types, or without one, runs; any other holds data.
_RUNNING_SCRIPTS = frozenset(
    {"", "module", "text/javascript", "application/javascript", "text/ecmascript"}
) | frozenset(
    {
        "application/ecmascript",
        "application/x-ecmascript",
        "application/x-javascript",
        "text/jscript",
        "text/livescript",
    }
    | {"text/x-ecmascript", "text/x-javascript"}
    | {f"text/javascript1.{minor}" for minor in range(6)}
)


@dataclass(slots=True)
class _Markup:
    """References and active content of the HTML part, in document order.

    ``further`` are the addresses of images in ``srcset`` and ``poster`` and in styles.
    """

    styles_remote: bool
    links: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    no_alt: list[str] = field(default_factory=list)
    no_address: list[str] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    handlers: set[str] = field(default_factory=set)


def lint_bodies(
    text: str | None, html: str | None, inline: Mapping[str, str] | None, *, made_up: str | None = None
) -> list[LintFinding]:
    """Return the findings about the text and HTML of a message. Use a thread for those that others wrote.

    ``inline`` has the MIME type of each inline attachment by the name in its ``cid:`` address; None if it is not known
    yet what will be attached. Links and images whose addresses begin with ``made_up`` are not judged.
    """
    if html is None:
        return []
    markup = _read_markup(html)
    if made_up is not None:
        markup.links = [link for link in markup.links if not link.startswith(made_up)]
        markup.images = [image for image in markup.images if not image.startswith(made_up)]
        markup.further = [image for image in markup.further if not image.startswith(made_up)]
    return [*_lint_parts(text, html), *_lint_markup(markup, inline)]


def _lint_parts(text: str | None, html: str) -> Iterator[LintFinding]:
    if not (text or "").strip():
        yield LintFinding(
            "problem",
            "no-text",
            "There is no text part",
            "Text-only mail clients show nothing, and many filters rate such a message as worse.",
        )
    if (size := len(html.encode())) > CLIP_BYTES:
        yield LintFinding(
            "problem",
            "size",
            f"The HTML part is {size / 1024:.0f} kB long",
            "Gmail clips it at 102 kB and hides the rest, such as the unsubscribe link.",
        )


def _lint_markup(markup: _Markup, inline: Mapping[str, str] | None) -> Iterator[LintFinding]:
    yield from _lint_links(markup.links)
    yield from _lint_images(markup, inline)
    if markup.active:
        names = ", ".join(f"<{name}>" for name in sorted(markup.active))
        yield LintFinding(
            "problem",
            "active-content",
            f"Active content: {names}",
            "Mail clients remove it, and many filters reject it.",
        )
    if markup.handlers:
        names = ", ".join(sorted(markup.handlers)[:_SHOWN])
        yield LintFinding(
            "problem", "event-handlers", f"Event handlers: {names}", "Mail clients run no scripts and remove these."
        )


def _lint_links(links: list[str]) -> Iterator[LintFinding]:
    scripts = [link for link in links if link_scheme(link) in _SCRIPTS]
    if scripts:
        yield LintFinding(
            "problem",
            "link-script",
            f"{_count(scripts, 'link')} to a script",
            f"No mail client follows such a link, and filters reject it: {_some(scripts)}",
        )
    relative = [link for link in links if link_scheme(link) is None and not link.strip().startswith("#")]
    if relative:
        yield LintFinding(
            "problem",
            "link-relative",
            _count(relative, "relative link"),
            f"A message has no base URL; write the whole URL: {_some(relative)}",
        )


def _lint_images(markup: _Markup, inline: Mapping[str, str] | None) -> Iterator[LintFinding]:
    if markup.no_alt:
        yield LintFinding(
            "problem",
            "image-without-alt",
            f"{_count(markup.no_alt, 'image')} without alternative text",
            f'Write alt="...", or alt="" for decoration; many clients hide images at first: {_some(markup.no_alt)}',
        )
    if markup.no_address:
        yield LintFinding(
            "problem",
            "image-without-address",
            f"{_count(markup.no_address, 'image')} without an address",
            "Write the whole URL as src; mail clients run no script that would fill it in later: "
            f"{_some(markup.no_address)}",
        )
    images = [image for image in [*markup.images, *markup.further] if not image.strip().startswith("#")]
    relative = [image for image in images if image.strip() and link_scheme(image) is None]
    if relative:
        yield LintFinding(
            "problem",
            "image-relative",
            f"{_count(relative, 'image')} with a relative address",
            f"No client can load it: {_some(relative)}",
        )
    absent = [
        image
        for image in images
        if inline is not None and link_scheme(image) == "cid" and unquote(image.strip()[4:]) not in inline
    ]
    if absent:
        yield LintFinding(
            "problem",
            "image-not-attached",
            f"{_count(absent, 'inline image')} not attached",
            f"No inline attachment has this Content-ID: {_some(absent)}",
        )
    remote = [image for image in markup.images if is_remote(image)]
    if remote or markup.styles_remote:
        hosts = sorted({host for image in remote if (host := _host(image))})
        yield LintFinding(
            "note",
            "image-remote",
            _count(remote, "remote image") if remote else "Remote images in styles",
            f"Many clients show them only if the reader allows it{': ' + ', '.join(hosts[:_SHOWN]) if hosts else ''}.",
        )


def _read_markup(html: str) -> _Markup:
    found = _Markup(remote_styles(html))
    sheet: int | None = None
    for tag in read_tags(html):
        if sheet is not None:
            found.further += _of_style_sheet(html[sheet : tag.start])
            sheet = None
        if tag.kind == "start":
            values = attribute_values(html, tag)
            _read_element(found, tag.name, values)
            sheet = tag.end if tag.name == "style" else None
    if sheet is not None:
        found.further += _of_style_sheet(html[sheet:])
    return found


def _read_element(found: _Markup, name: str, attributes: dict[str, str]) -> None:
    if name in ("a", "area") and "href" in attributes:
        found.links.append(attributes["href"])
    elif name == "img":
        source = attributes.get("src", "")
        found.images.append(source)
        if "alt" not in attributes:
            found.no_alt.append(source or "<img>")
        if not source.strip() and not attributes.get("srcset", "").strip():
            found.no_address.append(attributes.get("alt") or "<img>")
    elif name in _ACTIVE and (name != "script" or _runs(attributes)):
        found.active.add(name)
    if "background" in attributes:
        found.images.append(attributes["background"])
    found.further += srcset_addresses(attributes.get("srcset", ""))
    if "poster" in attributes:
        found.further.append(attributes["poster"])
    if style := attributes.get("style"):
        found.further += _of_declarations(read_declarations(style)[0])
    found.handlers.update(
        attribute for attribute in attributes if attribute.startswith("on") and attribute[2:].isalpha()
    )


def _of_style_sheet(css: str) -> Iterator[str]:
    for rule in read_stylesheet(css).rules:
        if holds_styles(rule.prelude):
            yield from _of_declarations(rule.declarations)


def _of_declarations(declarations: Iterable[Declaration]) -> Iterator[str]:
    for declaration in declarations:
        yield from image_addresses(declaration.value)


def _runs(attributes: dict[str, str]) -> bool:
    """True for a script element that holds a script, and not data such as JSON-LD or a template."""
    if "type" not in attributes and attributes.get("language"):
        kind = f"text/{attributes['language']}"
    else:
        kind = attributes.get("type", "")
    return kind.strip("\t\n\f\r ").lower() in _RUNNING_SCRIPTS


def _host(address: str) -> str:
    try:
        return urlsplit(address.strip()).hostname or ""
    except ValueError:
        return ""


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some(items: list[str]) -> str:
    shown = [item if len(item) <= 60 else f"{item[:57]}..." for item in dict.fromkeys(items)][:_SHOWN]
    return ", ".join(shown) + (", ..." if len(set(items)) > _SHOWN else "")
