"""Check sent messages and rendered templates for problems that mail clients and spam filters would have with it."""

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from html import unescape
from pathlib import PurePosixPath
from typing import NamedTuple

from openviper.core.email.delivery import Mailer
from openviper.core.email.errors import TemplateFailed
from openviper.core.email.inbox.entries import Entry
from openviper.core.email.inbox.previews import Preview, list_templates
from openviper.core.email.inbox.samples import MADE_UP
from openviper.core.email.lint import LintFinding, by_level, lint_bodies, lint_client_support
from openviper.core.email.message.model import MUST_STREAM, PreparedMessage
from openviper.core.email.message.plaintext import html_to_text
from openviper.core.email.sending.previews import load_previews, render_preview
from openviper.core.email.templates import TemplateRenderer
from openviper.exceptions import OpenViperError
from openviper.text import error_origin, shown, suggestion

__all__ = ["LintReport", "lint_message", "lint_prepared", "lint_previews", "lint_template", "templates_to_lint"]

_BULK_RECIPIENTS = 20
_BULK_PRECEDENCES = ("bulk", "list", "junk")
_IN_BRACKETS = re.compile(r"<([^<>]+)>")
# How a link to unsubscribe, or to choose what one gets, is labelled or addressed in many languages.
_LEAVING = re.compile(
    r"unsub|opt[ -]?out|preferences|subscri|suscri|inscri|iscri[vz]|abonn|\bbaja\b|abmeld|abbestell|austragen|afmeld"
    r"|uitschrij|avregistr|avmeld|frameld|peruut|odhl[aá]s|wypis|rezygn|leiratkoz|dezabon|abonelik|отпис|відпис"
    r"|διαγραφ|הסר|إلغاء|配信停止|購読|退订|退訂|구독|수신",
    re.IGNORECASE,
)

_EMPTY = LintFinding(
    "problem", "no-text", "The message is empty", "Readers see nothing, and many filters take it for spam."
)


class LintReport(NamedTuple):
    """The findings about a message or a template, problems first, and apart from them the notes on mail clients."""

    findings: list[LintFinding]
    client_notes: list[LintFinding]

    @property
    def problems(self) -> int:
        """Return the number of problems."""
        return sum(finding.level == "problem" for finding in self.findings)


def lint_message(entry: Entry, always_streams: Collection[str], targets: Collection[str]) -> LintReport:
    """Return the report on a sent message. The time is proportional to its length; use a thread.

    ``always_streams``: streams that nobody can opt out of (``EMAIL["always_streams"]``). ``targets``: mail clients to
    judge it by (``EMAIL["target_clients"]``).
    """
    return lint_prepared(entry.prepared, targets, _lint_headers(entry, always_streams))


def lint_prepared(
    prepared: PreparedMessage, targets: Collection[str], findings: Iterable[LintFinding] = ()
) -> LintReport:
    """Return the report on a message's bodies, to which ``findings`` about its other parts are added. Use a thread."""
    inline = {part.content_id or part.filename: part.mimetype for part in prepared.attachments if part.inline}
    found = [*findings, *lint_bodies(prepared.text, prepared.html, inline), *_lint_unsubscribe_link(prepared)]
    if prepared.html is None and not (prepared.attachments or prepared.calendar or (prepared.text or "").strip()):
        found.append(_EMPTY)
    return _report(found, lint_client_support(prepared.html or "", targets, inline))


def lint_template(preview: Preview, targets: Collection[str]) -> LintReport:
    """Return the report on a rendered template; one that cannot be rendered is a problem. Use a thread.

    Nothing is said about subject, headers and attachments, which the sending call adds, nor about made-up addresses.
    """
    rendered = preview.rendered
    if rendered is None:
        broken = LintFinding("problem", "template-error", "The template cannot be rendered", preview.error)
        return LintReport([broken], [])
    text = rendered.text if rendered.text is not None else html_to_text(rendered.html or "")
    findings = lint_bodies(text, rendered.html, None, made_up=MADE_UP)
    if rendered.html is None and not text.strip():
        findings.append(_EMPTY)
    return _report(findings, lint_client_support(rendered.html or "", targets, {}))


async def lint_previews(mailer: Mailer, only: Collection[str] = ()) -> dict[str, LintReport]:
    """Return the reports on the previews in code (``EMAIL["mails"]``) and their variants, by name.

    ``only``: names of previews and of templates; empty for all previews. A name in a module of previews that is
    neither is a problem.

    Raises:
        ImproperlyConfigured: a module of previews does not exist, or a preview is declared wrongly.
    """
    reports: dict[str, LintReport] = {}
    previews = await asyncio.to_thread(load_previews, mailer.settings.mails)
    known = [one.name for one in previews]
    for name in only:
        in_module = name.rpartition(".")[0] in mailer.settings.mails
        if in_module and name not in known and not await asyncio.to_thread(_is_template, mailer.renderer, name):
            text = f"there is no preview {shown(name)}{suggestion(name, known)}"
            broken = LintFinding("problem", "preview-error", "The preview cannot be rendered", text)
            reports[name] = LintReport([broken], [])
    for one in previews:
        if only and one.name not in only:
            continue
        for variant, changes in {"": {}, **one.variants}.items():
            name = f"{one.name} ({variant})" if variant else one.name
            try:
                mail = await render_preview(mailer, one, {**one.values, **changes})
            except Exception as error:  # noqa: BLE001 - whatever the project's function raises is its problem
                origin = "" if isinstance(error, OpenViperError) else f" ({error_origin(error)})"
                broken = LintFinding("problem", "preview-error", "The preview cannot be rendered", f"{error}{origin}")
                reports[name] = LintReport([broken], [])
                continue
            reports[name] = await asyncio.to_thread(lint_prepared, mail.message, mailer.settings.target_clients)
    return reports


def _is_template(renderer: TemplateRenderer, name: str) -> bool:
    try:
        return bool(renderer.library.files(name))
    except TemplateFailed:
        return False


def templates_to_lint(renderer: TemplateRenderer) -> tuple[list[str], list[str]]:
    """Return the names of the templates to check, and those left out because others include or extend them.

    The first are those in folders for mail; all if there is no such folder. Reads folders: use a thread.
    """
    listed = list_templates(renderer)
    names = [template.name for template in listed if template.mail] or [template.name for template in listed]
    parts: set[str] = set()
    for name in names:
        with suppress(TemplateFailed):  # reported when it is rendered
            own = {file for _, file in renderer.library.files(name)}
            parts.update(
                str(PurePosixPath(file).with_suffix("")) for file in renderer.library.trees(name) if file not in own
            )
    return [name for name in names if name not in parts], [name for name in names if name in parts]


def _report(findings: list[LintFinding], clients: list[LintFinding]) -> LintReport:
    problems = [finding for finding in clients if finding.level == "problem"]
    return LintReport(by_level([*findings, *problems]), [finding for finding in clients if finding.level == "note"])


def _lint_headers(entry: Entry, always_streams: Collection[str]) -> Iterator[LintFinding]:
    if not entry.prepared.subject.strip():
        yield LintFinding("problem", "no-subject", "There is no subject", "Many filters treat such a message as spam.")
    headers = {name.lower(): value.lower() for name, value in entry.prepared.headers}
    stream = entry.prepared.must.get(MUST_STREAM)
    if "list-unsubscribe" not in headers:
        if _is_bulk(entry, headers):
            yield LintFinding(
                "problem",
                "no-unsubscribe",
                "Bulk mail without an unsubscribe header",
                "Gmail and Yahoo require the header List-Unsubscribe (RFC 2369), with one click (RFC 8058): send it "
                "with unsubscribe=True, to each reader a message of their own.",
            )
        elif stream is not None and stream not in always_streams:
            yield LintFinding(
                "note",
                "no-unsubscribe",
                f"Readers cannot unsubscribe from the stream {stream}",
                "If it is bulk mail, send it with unsubscribe=True; if nobody may opt out, add the stream to "
                'EMAIL["always_streams"].',
            )
    elif "list-unsubscribe-post" not in headers:
        yield LintFinding(
            "note",
            "unsubscribe-clicks",
            "Unsubscribing takes more than one click",
            "Add the header List-Unsubscribe-Post: List-Unsubscribe=One-Click (RFC 8058).",
        )


def _lint_unsubscribe_link(prepared: PreparedMessage) -> Iterator[LintFinding]:
    """Yield a note if a message with the header has no link for people: neither its address, nor what says so."""
    headers = [value for name, value in prepared.headers if name.lower() == "list-unsubscribe"]
    if not headers:
        return
    body = unescape(prepared.text or "" if prepared.html is None else prepared.html)
    if _LEAVING.search(body) or any(address in body for address in _IN_BRACKETS.findall(headers[0])):
        return
    yield LintFinding(
        "note",
        "no-unsubscribe-link",
        "There is no unsubscribe link in the body",
        "Gmail asks for a visible link beside the header List-Unsubscribe: write {{ unsubscribe_url }} in the "
        "template, or link to a page on which readers unsubscribe.",
    )


def _is_bulk(entry: Entry, headers: Mapping[str, str]) -> bool:
    """True for a message to many, or with a header of mailing lists (RFC 2919, RFC 2369, RFC 2076)."""
    many = len(entry.envelope.recipients) > _BULK_RECIPIENTS
    return many or headers.get("precedence") in _BULK_PRECEDENCES or any(name.startswith("list-") for name in headers)
