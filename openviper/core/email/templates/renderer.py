"""Rendering a message's text, HTML and subject from templates."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, TemplateError, TemplateNotFound, TemplateSyntaxError, meta, nodes

from openviper.conf.imports import require
from openviper.core.email.errors import TemplateFailed
from openviper.core.email.templates.environment import (
    SUBJECT,
    Kind,
    MailEnvironment,
    Rendering,
    current_rendering,
    make_environment,
)
from openviper.core.email.templates.files import FolderLoader, check_name
from openviper.core.email.templates.links import guard_links, link_scheme
from openviper.core.email.templates.markdown import load_converter, to_html
from openviper.core.email.templates.values import AUTOLINK, Values

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RenderedTemplate", "TemplateRenderer"]

_logger = logging.getLogger("openviper.email")

_KINDS = {".txt": Kind.TEXT, ".html": Kind.HTML, ".htm": Kind.HTML, ".md": Kind.MARKDOWN}
_ALLOWED = ", ".join(_KINDS)
_LONG_RENDERING = 0.005  # seconds; a template that took longer is rendered in a thread from then on
_LONG_CONTENT = 50_000  # characters; more is converted in a thread
_ADDRESS = re.compile(r"[^\s@<>]+@[^\s@<>:/?#]+\.[^\s@<>:/?#]+")


@dataclass(frozen=True, slots=True)
class RenderedTemplate:
    """``text`` and ``html`` are None where the template has no such part, ``subject`` where it gives none."""

    text: str | None
    html: str | None
    subject: str | None


@dataclass(slots=True)
class _Plan:
    """The files behind a name. ``on_loop``: everything it needs is compiled, and it has been quick."""

    parts: tuple[tuple[Kind, str], ...]
    on_loop: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class _Body:
    """What Jinja has written for one file; with stand-ins for ``values`` if it is Markdown."""

    kind: Kind
    content: str
    subject: str | None
    values: Values | None


class TemplateRenderer:
    """Renders the templates of one or several folders; keep one, since it keeps what it has compiled.

    ``dirs``: the first folder that has a template wins. ``debug``: templates are reloaded when they change, and a
    missing variable is an error instead of empty text and one warning. ``inline_css`` moves style sheets into ``style``
    attributes (extra ``css``; nothing is loaded from files or the network). ``environment``: an application's own
    Jinja environment, whose syntax, extensions, filters, tests and globals are taken over as they are then; templates
    that the folders do not have come from its loader. Templates still run in the sandbox, and never asynchronously.

    Safe to share between threads and event loops.
    """

    def __init__(
        self, dirs: Sequence[Path], *, debug: bool, inline_css: bool = False, environment: Environment | None = None
    ) -> None:
        self._dirs = tuple(Path(folder) for folder in dirs)
        self._debug = debug
        self._inline_css = inline_css
        self._loader = ChoiceLoader([FolderLoader(self._dirs)])
        if environment is not None and environment.loader is not None:
            self._loader.loaders = [*self._loader.loaders, environment.loader]
        self._environments = {
            kind: make_environment(kind, self._loader, debug=debug, host=environment) for kind in Kind
        }
        self._plans: dict[str, _Plan] = {}
        self._warned: set[tuple[str, str]] = set()
        self._inliner: Any = None
        self._inliner_lock = threading.Lock()

    async def prepare(self) -> None:
        """Do the slow first imports in a thread now, instead of at the first message.

        Raises:
            MissingDependency: ``inline_css`` is on and css-inline is not installed.
        """
        await asyncio.to_thread(self._prepare)

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
        if sum(len(body.content) for body in bodies) > _LONG_CONTENT:
            return await asyncio.to_thread(self._finish, name, bodies)
        return self._finish(name, bodies)

    def names(self) -> list[str]:
        """The files that its loaders list and that may be a mail's template. Reads folders: use a thread."""
        found: set[str] = set()
        for loader in self._loader.loaders:
            with suppress(TypeError):  # a loader that cannot say what it has
                found.update(loader.list_templates())
        return sorted(name for name in found if PurePosixPath(name).suffix in _KINDS)

    def source(self, name: str) -> str | None:
        """The text of a file beside the templates, such as sample values; None if there is none. Use a thread.

        Raises:
            TemplateFailed: a name that leaves the folders.
        """
        try:
            return self._loader.get_source(self._environments[Kind.TEXT], check_name(name))[0]
        except TemplateNotFound:
            return None

    def trees(self, name: str) -> dict[str, nodes.Template]:
        """The syntax of every file that rendering ``name`` may use, as far as they name each other. Use a thread.

        Raises:
            TemplateFailed: as ``render``.
        """
        check_name(name)
        found: dict[str, nodes.Template] = {}
        for kind, file in self._parts(name):
            environment = self._environments[kind]
            waiting = [file]
            while waiting:
                current = waiting.pop()
                source = None if current in found else self.source(current)
                if source is None:
                    continue
                try:
                    found[current] = environment.parse(source, current)
                except TemplateError as error:
                    raise self._failure(name, error) from error
                waiting.extend(used for used in meta.find_referenced_templates(found[current]) if used is not None)
        return found

    @property
    def globals(self) -> frozenset[str]:
        """Names that every template knows without being given them."""
        return frozenset(name for environment in self._environments.values() for name in environment.globals)

    def _prepare(self) -> None:
        load_converter()
        if self._inline_css:
            self._css_inliner()

    def _load_and_render(self, name: str, values: dict[str, Any]) -> RenderedTemplate:
        plan = self._plans.get(name)
        if plan is not None and not self._debug:
            return self._finish(name, self._render(name, plan, values))
        plan = _Plan(self._parts(name))
        complete = self._compile(name, plan)
        result = self._finish(name, self._render(name, plan, values))
        plan.on_loop = complete and not self._debug
        self._plans[name] = plan
        return result

    def _parts(self, name: str) -> tuple[tuple[Kind, str], ...]:
        suffix = PurePosixPath(name).suffix
        if suffix:
            kind = _KINDS.get(suffix)
            if kind is None:
                raise TemplateFailed(name, f"the extension {suffix!r} is not one of {_ALLOWED}")
            if not self._exists(name):
                raise TemplateFailed(name, self._not_found(name))
            return ((kind, name),)
        found = [(kind, name + suffix) for suffix, kind in _KINDS.items() if self._exists(name + suffix)]
        if not found:
            raise TemplateFailed(name, self._not_found(f"{name} with one of {_ALLOWED}"))
        first: dict[Kind, str] = {}
        for kind, file in found:
            first.setdefault(kind, file)
        if len(first) == len(Kind):
            del first[Kind.MARKDOWN]
        return tuple(first.items())

    def _exists(self, name: str) -> bool:
        try:
            self._loader.get_source(self._environments[Kind.TEXT], name)
        except TemplateNotFound:
            return False
        return True

    def _not_found(self, name: str) -> str:
        searched = ", ".join(str(folder.absolute()) for folder in self._dirs) or "no folder: set TEMPLATES_DIR"
        more = " and in the application's own loader" if len(self._loader.loaders) > 1 else ""
        return f"there is no {name} in {searched}{more}"

    def _compile(self, name: str, plan: _Plan) -> bool:
        """Compile all that ``plan`` needs; False if a template decides only while it runs what it includes."""
        complete = True
        try:
            for kind, file in plan.parts:
                environment = self._environments[kind]
                seen: set[str] = set()
                waiting = [file]
                while waiting:
                    current = waiting.pop()
                    if current in seen:
                        continue
                    seen.add(current)
                    try:
                        environment.get_template(current)
                    except TemplateNotFound:
                        complete = False  # perhaps "ignore missing": rendering will tell
                        continue
                    source = self._loader.get_source(environment, current)[0]
                    for used in meta.find_referenced_templates(environment.parse(source, current)):
                        if used is None:
                            complete = False
                        else:
                            waiting.append(used)
        except TemplateFailed as error:
            if error.template == name:
                raise
            raise self._failure(name, error) from error
        except TemplateError as error:
            raise self._failure(name, error) from error
        return complete

    def _render(self, name: str, plan: _Plan, values: dict[str, Any]) -> list[_Body]:
        begun = time.perf_counter()
        bodies = [self._run(name, kind, file, values) for kind, file in plan.parts]
        if time.perf_counter() - begun > _LONG_RENDERING:
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
            elif body.kind is Kind.HTML:
                html = self._guarded(name, body.content, self._environments[body.kind].written)
            else:
                text = body.content
        if html is not None and self._inline_css:
            html = self._with_inline_css(name, html)
        return RenderedTemplate(text, html, next((body.subject for body in bodies if body.subject is not None), None))

    def _run(self, name: str, kind: Kind, file: str, context: dict[str, Any]) -> _Body:
        values = Values(name) if kind is Kind.MARKDOWN else None
        rendering = Rendering(name, self._warned, values)
        token = current_rendering.set(rendering)
        try:
            content, subject = _written(self._environments[kind], file, context, rendering)
        except TemplateFailed as error:
            if error.template == name:
                raise
            raise self._failure(name, error) from error
        except Exception as error:
            # Whatever a template calls may fail: a filter, a property of a model, a division.
            raise self._failure(name, error) from error
        finally:
            current_rendering.reset(token)
        if subject is None:
            return _Body(kind, content, None, values)
        if values is not None:
            subject = values.as_text(values.source(subject))
        elif kind is Kind.HTML:
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

        html = AUTOLINK.sub(link, to_html(source))
        return self._guarded(name, values.as_html(html), ())

    def _guarded(self, name: str, html: str, written: set[str] | tuple[()]) -> str:
        html, removed = guard_links(html, written=written)
        key = (name, "link")
        if removed and key not in self._warned:
            self._warned.add(key)
            _logger.warning(
                "template %r: a link to %r was taken out; only http, https, mailto, tel and cid may be used",
                name,
                f"{removed[0][:40]}:",
            )
        return html

    def _with_inline_css(self, name: str, html: str) -> str:
        inliner = self._css_inliner()
        try:
            return str(inliner.inline(html))
        except ValueError as error:
            raise TemplateFailed(name, f"its CSS cannot be inlined: {error}") from error

    def _css_inliner(self) -> Any:
        with self._inliner_lock:
            if self._inliner is None:
                library = require("css_inline", extra="css", purpose='EMAIL["inline_css"]')
                self._inliner = library.CSSInliner(load_remote_stylesheets=False)
            return self._inliner

    def _failure(self, name: str, error: Exception) -> TemplateFailed:
        if isinstance(error, TemplateSyntaxError):
            where = f"{error.name}, " if error.name not in {None, name} else ""
            return TemplateFailed(name, f"{where}line {error.lineno}: {error.message}")
        if isinstance(error, TemplateNotFound):
            return TemplateFailed(name, f"{_place(error, name)}{self._not_found(str(error.name))}")
        description = (
            str(error) if isinstance(error, TemplateError | TemplateFailed) else f"{type(error).__name__}: {error}"
        )
        return TemplateFailed(name, f"{_place(error, name)}{description}")


def _written(
    environment: MailEnvironment, file: str, values: dict[str, Any], rendering: Rendering
) -> tuple[str, str | None]:
    """The body and the subject; None when no template of the inheritance has the block."""
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


def _place(error: Exception, name: str) -> str:
    """Where in the templates ``error`` was raised: the innermost line that Jinja has mapped back."""
    place = ""
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if "__jinja_exception__" in traceback.tb_frame.f_globals:
            file = traceback.tb_frame.f_code.co_filename
            place = f"line {traceback.tb_lineno}: " if file.endswith(name) else f"{file}, line {traceback.tb_lineno}: "
        traceback = traceback.tb_next
    return place
