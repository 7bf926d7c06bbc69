"""Render a message's text, HTML and subject from templates."""

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from jinja2 import Environment

from openviper.core.email.errors import TemplateFailed
from openviper.core.email.templates.css import CssNotInlined, inline_css, load_inliner
from openviper.core.email.templates.environment import (
    SUBJECT,
    MailEnvironment,
    Rendering,
    TemplateKind,
    current_rendering,
)
from openviper.core.email.templates.files import check_name
from openviper.core.email.templates.library import TemplateLibrary
from openviper.core.email.templates.links import guard_links, link_scheme
from openviper.core.email.templates.markdown import load_converter, to_html
from openviper.core.email.templates.values import AUTOLINK, Values

__all__ = ["RenderedTemplate", "TemplateRenderer"]

_logger = logging.getLogger("openviper.email")

# Seconds; a template that took longer is rendered in a thread from then on. If it used little of the processor, it has
# waited for something, or the machine was busy: then only the last of several times in a row counts.
_LONG_RENDERING = 0.005
_LONG_IN_A_ROW = 3
_LONG_CONTENT = 50_000  # characters; more is converted in a thread
_LONG_TO_INLINE = 5_000  # characters; inlining takes a tenfold time
_ADDRESS = re.compile(r"[^\s@<>]+@[^\s@<>:/?#]+\.[^\s@<>:/?#]+")


@dataclass(frozen=True, slots=True)
class RenderedTemplate:
    """``text`` and ``html`` are None where the template has no such part, ``subject`` where it gives none."""

    text: str | None
    html: str | None
    subject: str | None


@dataclass(slots=True)
class _Plan:
    """The files behind a name. ``on_loop``: everything it needs is compiled, and it has been quick.

    ``long``: how many times in a row it has taken long.
    """

    files: tuple[tuple[TemplateKind, str], ...]
    on_loop: bool = False
    long: int = 0


@dataclass(frozen=True, slots=True)
class _Body:
    """Jinja's output for one file, with stand-ins for ``values`` if it is Markdown."""

    kind: TemplateKind
    content: str
    subject: str | None
    values: Values | None


class TemplateRenderer:
    """Render the templates of one or several folders. Reuse the renderer: it caches compiled templates.

    ``dirs``: the first folder that has a template wins. ``debug``: templates are reloaded when they change, and a
    missing variable is an error instead of empty text and one warning. ``inline_css`` moves the rules of style sheets
    into ``style`` attributes (extra ``css``; nothing is loaded from files or the network). ``environment``: an
    application's own Jinja environment, whose syntax, extensions, filters, tests and globals are taken over as they are
    then; templates that the folders do not have come from its loader. Templates still run in the sandbox, and never
    asynchronously.

    Safe to share between threads and event loops.
    """

    def __init__(
        self, dirs: Sequence[Path], *, debug: bool, inline_css: bool = False, environment: Environment | None = None
    ) -> None:
        self.library = TemplateLibrary(dirs, debug=debug, environment=environment)
        self._debug = debug
        self._inline_css = inline_css
        self._plans: dict[str, _Plan] = {}
        self._warned: set[tuple[str, str]] = set()

    async def prepare(self) -> None:
        """Do the slow first imports in a thread now, instead of at the first message.

        Raises:
            MissingDependency: ``inline_css`` is on and css-inline is not installed.
        """
        await asyncio.to_thread(load_converter)
        if self._inline_css:
            await asyncio.to_thread(load_inliner)

    async def render(self, name: str, context: Mapping[str, Any] | None = None) -> RenderedTemplate:
        """Render ``name``: ``.txt`` gives the text, ``.html`` and ``.htm`` the HTML, ``.md`` both.

        Without an extension every file with that stem is used: the text comes from ``.txt``, else from ``.md``, the
        HTML from ``.html``, ``.htm`` or ``.md``. The block ``subject`` gives the subject, wherever it stands or is
        inherited from: it is taken out of the body, unescaped, and its line breaks become spaces; of several files
        that have it the text's counts.

        Values are written as they are into text and escaped for HTML. In Markdown a value is literal text, in the
        HTML and, unescaped, in the text part: whatever it contains makes no link, heading, list or element there, alone
        or with the text beside it (so ``{{ n }}. item`` is no numbered list; write ``1. item``, Markdown counts).
        ``<{{ url }}>`` is a link where the value is a web or mail address.
        Markup (``|safe``) is HTML that is trusted and put in as it is. Links lead only to http, https, mailto, tel and
        cid; other targets are taken out and reported in the log. In ``.html`` the schemes that the templates
        themselves spell out stay allowed, script excepted.

        Raises:
            TemplateFailed: no such template, a name that leaves the folders, a syntax error, or one while rendering.
            MissingDependency: ``inline_css`` is on and css-inline is not installed.
        """
        check_name(name)
        values = dict(context or {})
        plan = self._plans.get(name)
        if plan is None or not plan.on_loop:
            return await asyncio.to_thread(self._load_and_render, name, values)
        bodies = self._render(name, plan, values)
        if sum(len(body.content) for body in bodies) > (_LONG_TO_INLINE if self._inline_css else _LONG_CONTENT):
            return await asyncio.to_thread(self._finish, name, bodies)
        return self._finish(name, bodies)

    def _load_and_render(self, name: str, values: dict[str, Any]) -> RenderedTemplate:
        plan = self._plans.get(name)
        if plan is not None and not self._debug:
            return self._finish(name, self._render(name, plan, values))
        plan = _Plan(self.library.files(name))
        complete = self.library.compile(name, plan.files)
        result = self._finish(name, self._render(name, plan, values))
        plan.on_loop, plan.long = complete and not self._debug, 0  # a first time, and in a thread, is no measure
        self._plans[name] = plan
        return result

    def _render(self, name: str, plan: _Plan, values: dict[str, Any]) -> list[_Body]:
        begun, used = time.perf_counter(), time.thread_time()
        bodies = [self._run(name, kind, file, values) for kind, file in plan.files]
        if time.perf_counter() - begun <= _LONG_RENDERING:
            plan.long = 0
        else:
            plan.long += 1
            if time.thread_time() - used > _LONG_RENDERING / 2 or plan.long >= _LONG_IN_A_ROW:
                plan.on_loop = False
        return bodies

    def _finish(self, name: str, bodies: list[_Body]) -> RenderedTemplate:
        """Convert and guard what Jinja has written; of parts that several files give, the first counts."""
        text: str | None = None
        html: str | None = None
        for body in bodies:
            if body.values is not None:
                source = body.values.source(body.content)
                text = body.values.as_text(source) if text is None else text
                html = self._markdown(name, source, body.values) if html is None else html
            elif body.kind is TemplateKind.HTML:
                html = self._guarded(name, body.content, self.library.environments[body.kind].written)
            else:
                text = body.content
        if html is not None and self._inline_css:
            try:
                html = inline_css(html)
            except CssNotInlined as error:
                raise TemplateFailed(name, str(error)) from error
        return RenderedTemplate(text, html, next((body.subject for body in bodies if body.subject is not None), None))

    def _run(self, name: str, kind: TemplateKind, file: str, context: dict[str, Any]) -> _Body:
        values = Values(name) if kind is TemplateKind.MARKDOWN else None
        rendering = Rendering(name, self._warned, values)
        token = current_rendering.set(rendering)
        try:
            with self.library.reporting(name):
                content, subject = _written(self.library.environments[kind], file, context, rendering)
        finally:
            current_rendering.reset(token)
        if subject is None:
            return _Body(kind, content, None, values)
        if values is not None:
            subject = values.as_text(values.source(subject))
        elif kind is TemplateKind.HTML:
            subject = unescape(subject)
        return _Body(kind, content.lstrip("\r\n"), " ".join(subject.split()) or None, values)

    def _markdown(self, name: str, source: str, values: Values) -> str:
        def link(match: re.Match[str]) -> str:
            target = values.as_text(match[1]).strip()
            if link_scheme(target) in {"http", "https", "mailto", "tel"}:
                return f'<a href="{match[1]}">{match[1]}</a>'
            if _ADDRESS.fullmatch(target):
                return f'<a href="mailto:{match[1]}">{match[1]}</a>'
            return f"&lt;{match[1]}&gt;"

        try:
            html = AUTOLINK.sub(link, to_html(source))
        except RecursionError as error:
            raise TemplateFailed(name, "its Markdown nests lists or quotations too deeply to be converted") from error
        return self._guarded(name, values.as_html(html), ())

    def _guarded(self, name: str, html: str, written: set[str] | tuple[()]) -> str:
        html, removed = guard_links(html, written=written)
        key = (name, "link")
        if removed and key not in self._warned:
            self._warned.add(key)
            _logger.warning(
                "template %r: a link to %r was removed; only http, https, mailto, tel and cid may be used",
                name,
                f"{removed[0][:40]}:",
            )
        return html


def _written(
    environment: MailEnvironment, file: str, values: dict[str, Any], rendering: Rendering
) -> tuple[str, str | None]:
    """Return the body and the subject; the subject is None if no template in the inheritance has its block."""
    template = environment.get_template(file)
    context = template.new_context(values)
    try:
        content = "".join(template.root_render_func(context))
        block = context.blocks.get(SUBJECT)
        if not block:
            return content, None
        rendering.in_subject = True
        return content, "".join(block[0](context))
    except Exception:  # noqa: BLE001 - raised again, with the lines of the template
        environment.handle_exception()
