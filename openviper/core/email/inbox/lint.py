"""Check a message for problems that mail clients and spam filters would have with it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.markup import elements, is_remote, remote_styles
from openviper.core.email.message.model import MUST_STREAM
from openviper.core.email.templates.links import link_scheme

__all__ = ["CLIP_BYTES", "LintFinding", "lint"]

CLIP_BYTES = 102 * 1024
"""Gmail clips a longer HTML part and links to the rest."""

_BULK_RECIPIENTS = 20
_BULK_PRECEDENCES = ("bulk", "list", "junk")
_SHOWN = 3
_SCRIPTS = frozenset({"javascript", "vbscript", "data"})
_ACTIVE = frozenset({"script", "form", "iframe", "object", "embed", "video", "audio"})
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


@dataclass(frozen=True, slots=True)
class LintFinding:
    """A problem, which readers will see or filters will punish, or advice, where they may."""

    level: Literal["problem", "advice"]
    title: str
    explanation: str


@dataclass(slots=True)
class _Markup:
    """References and active content of the HTML part, in document order."""

    links: list[str]
    images: list[str]
    no_alt: list[str]
    active: set[str]
    handlers: set[str]
    styles_remote: bool


def lint(entry: Entry, always_streams: Collection[str] = ()) -> list[LintFinding]:
    """Return the findings about a message, problems first. The time is proportional to its length; use a thread.

    ``always_streams``: streams that nobody can opt out of (``EMAIL["always_streams"]``).
    """
    findings = [*_lint_headers(entry, always_streams), *_lint_parts(entry)]
    html = entry.prepared.html
    if html is not None:
        findings += _lint_html(entry, html)
    return sorted(findings, key=lambda finding: finding.level != "problem")


def _lint_headers(entry: Entry, always_streams: Collection[str]) -> Iterator[LintFinding]:
    if not entry.prepared.subject.strip():
        yield LintFinding("problem", "There is no subject", "Many filters treat such a message as spam.")
    headers = {name.lower(): value.lower() for name, value in entry.prepared.headers}
    stream = entry.prepared.must.get(MUST_STREAM)
    if "list-unsubscribe" not in headers:
        if _is_bulk(entry, headers):
            yield LintFinding(
                "problem",
                "Bulk mail without an unsubscribe header",
                "Gmail and Yahoo require the header List-Unsubscribe (RFC 2369), with one click (RFC 8058): send it "
                "with unsubscribe=True, to each reader a message of their own.",
            )
        elif stream is not None and stream not in always_streams:
            yield LintFinding(
                "advice",
                f"Readers cannot unsubscribe from the stream {stream}",
                "If it is bulk mail, send it with unsubscribe=True; if nobody may opt out, add the stream to "
                'EMAIL["always_streams"].',
            )
    elif "list-unsubscribe-post" not in headers:
        yield LintFinding(
            "advice",
            "Unsubscribing takes more than one click",
            "Add the header List-Unsubscribe-Post: List-Unsubscribe=One-Click (RFC 8058).",
        )


def _is_bulk(entry: Entry, headers: Mapping[str, str]) -> bool:
    """True for a message to many, or with a header of mailing lists (RFC 2919, RFC 2369, RFC 2076)."""
    many = len(entry.envelope.recipients) > _BULK_RECIPIENTS
    return many or headers.get("precedence") in _BULK_PRECEDENCES or any(name.startswith("list-") for name in headers)


def _lint_parts(entry: Entry) -> Iterator[LintFinding]:
    prepared = entry.prepared
    if prepared.html is not None and not (prepared.text or "").strip():
        yield LintFinding(
            "problem",
            "There is no text part",
            "Text-only mail clients show nothing, and filters count it against the message.",
        )
    if prepared.html is not None and (size := len(prepared.html.encode())) > CLIP_BYTES:
        yield LintFinding(
            "problem",
            f"The HTML part is {size / 1024:.0f} kB long",
            "Gmail clips it at 102 kB and hides the rest, such as the unsubscribe link.",
        )


def _lint_html(entry: Entry, html: str) -> Iterator[LintFinding]:
    markup = _read_markup(html)
    yield from _lint_links(markup.links)
    yield from _lint_images(entry, markup)
    if markup.active:
        names = ", ".join(f"<{name}>" for name in sorted(markup.active))
        yield LintFinding("problem", f"Active content: {names}", "Mail clients remove it, and many filters reject it.")
    if markup.handlers:
        names = ", ".join(sorted(markup.handlers)[:_SHOWN])
        yield LintFinding("problem", f"Event handlers: {names}", "Mail clients run no scripts and remove these.")


def _lint_links(links: list[str]) -> Iterator[LintFinding]:
    scripts = [link for link in links if link_scheme(link) in _SCRIPTS]
    if scripts:
        yield LintFinding(
            "problem",
            f"{_count(scripts, 'link')} to a script",
            f"No mail client follows such a link, and filters reject it: {_some(scripts)}",
        )
    relative = [link for link in links if link_scheme(link) is None and not link.strip().startswith("#")]
    if relative:
        yield LintFinding(
            "problem",
            _count(relative, "relative link"),
            f"A message has no base URL; write the whole URL: {_some(relative)}",
        )


def _lint_images(entry: Entry, markup: _Markup) -> Iterator[LintFinding]:
    if markup.no_alt:
        yield LintFinding(
            "problem",
            f"{_count(markup.no_alt, 'image')} without alternative text",
            f'Write alt="...", or alt="" for decoration; many clients hide images at first: {_some(markup.no_alt)}',
        )
    relative = [image for image in markup.images if image.strip() and link_scheme(image) is None]
    if relative:
        yield LintFinding(
            "problem",
            f"{_count(relative, 'image')} with a relative address",
            f"No client can load it: {_some(relative)}",
        )
    names = {part.content_id or part.filename for part in entry.prepared.attachments if part.inline}
    absent = [
        image for image in markup.images if link_scheme(image) == "cid" and unquote(image.strip()[4:]) not in names
    ]
    if absent:
        yield LintFinding(
            "problem",
            f"{_count(absent, 'inline image')} not attached",
            f"No inline attachment has this Content-ID: {_some(absent)}",
        )
    remote = [image for image in markup.images if is_remote(image)]
    if remote or markup.styles_remote:
        hosts = sorted({host for image in remote if (host := _host(image))})
        yield LintFinding(
            "advice",
            _count(remote, "remote image") if remote else "Remote images in styles",
            f"Many clients show them only if the reader allows it{': ' + ', '.join(hosts[:_SHOWN]) if hosts else ''}.",
        )


def _read_markup(html: str) -> _Markup:
    found = _Markup([], [], [], set(), set(), remote_styles(html))
    for name, attributes in elements(html):
        if name in ("a", "area") and "href" in attributes:
            found.links.append(attributes["href"])
        elif name == "img":
            source = attributes.get("src", "")
            found.images.append(source)
            if "alt" not in attributes:
                found.no_alt.append(source or "<img>")
        elif name in _ACTIVE and (name != "script" or _runs(attributes)):
            found.active.add(name)
        if "background" in attributes:
            found.images.append(attributes["background"])
        found.handlers.update(
            attribute for attribute in attributes if attribute.startswith("on") and attribute[2:].isalpha()
        )
    return found


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
