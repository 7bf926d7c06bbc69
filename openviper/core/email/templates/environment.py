"""Make the sandboxed Jinja environments, one for each kind of text that values land in."""

import enum
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from operator import itemgetter
from typing import Any, NoReturn

from jinja2 import BaseLoader, ChainableUndefined, Environment, StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import pass_context
from markupsafe import Markup

from openviper.core.email.errors import TemplateFailed
from openviper.core.email.templates.links import naming_stand_in, unquoted_stand_in, written_schemes
from openviper.core.email.templates.repetition import (
    BoundedEscapeFormatter,
    BoundedFormatter,
    bound_builtins,
    bounded_arguments,
    check_operator,
)
from openviper.core.email.templates.values import FIRST_STAND_IN, AuthorText, Values, has_private_characters
from openviper.text import shown

__all__ = ["SUBJECT", "MailEnvironment", "Rendering", "TemplateKind", "current_rendering", "make_environment"]

_logger = logging.getLogger("openviper.email")

SUBJECT = "subject"
"""The block that gives the subject; it never stands in the body."""

_NAMES_ALLOWED = re.compile(r"\|\s*(?:safe|int|xmlattr)\s*(?:\([^()|]*\)\s*)?$")
_TRUSTED = chr(ord(FIRST_STAND_IN) + 1)
_MOST_WARNINGS = 1_000  # one for each template and variable; a name may come from a value
_BIGGEST_POWER_BITS = 10_000


class TemplateKind(enum.Enum):
    """Output format of a template, which decides how its values are escaped."""

    TEXT = "text"
    HTML = "html"
    MARKDOWN = "markdown"


@dataclass(slots=True)
class Rendering:
    """State of one template's rendering, for the functions that Jinja calls meanwhile."""

    template: str
    warned: set[tuple[str, str]]
    values: Values | None = None
    in_subject: bool = field(default=False)


current_rendering: ContextVar[Rendering] = ContextVar("openviper_email_rendering")


class _EmptyUndefined(ChainableUndefined):
    """A missing variable outside debug: empty, false, without items, and one warning in the log.

    Calculating with it is still an error: an amount that is made from nothing must not be sent.
    """

    __slots__ = ()

    def __str__(self) -> str:
        self._warn()
        return ""

    def __iter__(self) -> Iterator[Any]:
        self._warn()
        return iter(())

    def __bool__(self) -> bool:
        self._warn()
        return False

    def __len__(self) -> int:
        self._warn()
        return 0

    def _warn(self) -> None:
        rendering = current_rendering.get(None)
        if rendering is None:
            return
        key = (rendering.template, self._undefined_message)
        if key not in rendering.warned and len(rendering.warned) < _MOST_WARNINGS:
            rendering.warned.add(key)
            _logger.warning("template %r: %s, so it was rendered empty", rendering.template, self._undefined_message)


class _CodeGenerator(CodeGenerator):
    def visit_Block(self, node: nodes.Block, frame: Frame) -> None:  # noqa: N802
        # The subject is rendered by itself afterwards, as the innermost template defines it.
        if node.name != SUBJECT:
            super().visit_Block(node, frame)

    def visit_FilterBlock(self, node: nodes.FilterBlock, frame: Frame) -> None:  # noqa: N802
        if not isinstance(self.environment, MailEnvironment) or self.environment.kind is not TemplateKind.MARKDOWN:
            super().visit_FilterBlock(node, frame)
            return
        if all(isinstance(argument, nodes.Const) for argument in _arguments(node.filter)):
            super().visit_FilterBlock(node, frame)
            return
        # An argument may be a value, which the filter would write into the text unseen: keep the result literal.
        inner = frame.inner()
        inner.symbols.analyze_node(node)
        self.enter_frame(inner)
        self.buffer(inner)
        self.blockvisit(node.body, inner)
        self.start_write(frame, node)
        self.write("str(environment.finalize(context, ")
        self.visit_Filter(node.filter, inner)
        self.write("))")
        self.end_write(frame)
        self.leave_frame(inner)


class _FreshModuleTemplate(Template):
    """A template whose imported form is made anew each time: stand-ins of one message must not reach another."""

    def _get_default_module(self, ctx: Context | None = None) -> Any:
        if ctx is None:
            return self.make_module()
        return self.make_module({key: ctx.parent[key] for key in ctx.globals_keys - self.globals.keys()})


class MailEnvironment(SandboxedEnvironment):
    """A sandbox that writes values for one `TemplateKind` of text."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"*", "**", "%"})
    kind = TemplateKind.TEXT

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.written: set[str] = set()

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join what a macro, block or ``set`` has written, as a type that distinguishes it from a value."""
        return AuthorText("".join(parts))

    def preprocess(self, source: str, name: str | None = None, filename: str | None = None) -> str:
        source = super().preprocess(source, name, filename)
        if self.kind is TemplateKind.HTML:
            self.written |= written_schemes(source)
            self._refuse_values_in_tags(source, name, filename)
        elif self.kind is TemplateKind.MARKDOWN and has_private_characters(source):
            raise TemplateSyntaxError("characters above U+F0000 are not possible in Markdown", 1, name, filename)
        return source

    def _refuse_values_in_tags(self, source: str, name: str | None, filename: str | None) -> None:
        """Raise `TemplateSyntaxError` where a value stands in a tag, but in no attribute's quotation marks.

        Names may come from ``xmlattr``, which checks them, from ``safe``, for which the template's author answers,
        and from ``int``.
        """
        html: list[str] = []
        lines: list[tuple[int, int]] = []  # where in the HTML a piece of the template begins, and its line
        length = 0
        expression: list[str] = []
        for line, kind, text in self.lexer.tokeniter(source, name, filename):
            if kind in ("variable_begin", "data"):
                lines.append((length, line))
                html.append(text if kind == "data" else FIRST_STAND_IN)
                length += len(html[-1])
                expression.clear()
            elif kind == "variable_end":
                if _NAMES_ALLOWED.search("".join(expression)):
                    html[-1] = _TRUSTED
            else:
                expression.append(text)
        whole = "".join(html)
        for position, problem in (
            (unquoted_stand_in(whole), 'an attribute\'s value is not in quotes: write ="..."'),
            (naming_stand_in(whole), "a value names a tag or an attribute: write the name, with {% if %} around it"),
        ):
            if position is not None:
                index = bisect_right(lines, position, key=itemgetter(0)) - 1
                begin, line = lines[index]
                line += html[index].count("\n", 0, position - begin)
                raise TemplateSyntaxError(problem, line, name, filename)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"{type(obj).__name__}.{attribute} is not open to templates")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator != "**":
            check_operator(operator, left, right)
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _BIGGEST_POWER_BITS:
            raise SecurityError("a power is too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja does
        # The names leave every keyword to the function that the template calls.
        args = bounded_arguments(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None:
            return None
        text: str = value.__self__

        @wraps(sandboxed)
        def bounded(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                if len(args) != 1 or kwargs:
                    return sandboxed(*args, **kwargs)  # which says what is wrong with them
                kwargs, args = args[0], ()
            formatter = (
                BoundedEscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else BoundedFormatter(self)
            )
            return type(text)(formatter.vformat(text, args, kwargs))

        return bounded


class _MarkdownEnvironment(MailEnvironment):
    kind = TemplateKind.MARKDOWN
    template_class = _FreshModuleTemplate


class _HtmlEnvironment(MailEnvironment):
    kind = TemplateKind.HTML


_CLASSES: dict[TemplateKind, type[MailEnvironment]] = {
    TemplateKind.TEXT: MailEnvironment,
    TemplateKind.HTML: _HtmlEnvironment,
    TemplateKind.MARKDOWN: _MarkdownEnvironment,
}


def make_environment(
    kind: TemplateKind, loader: BaseLoader, *, debug: bool, host: Environment | None
) -> MailEnvironment:
    """Make an environment for ``kind``, with the syntax, extensions, filters, globals and policies of ``host``."""
    options: dict[str, Any] = {
        "loader": loader,
        "autoescape": kind is TemplateKind.HTML,
        "auto_reload": debug,
        "cache_size": -1,
        "undefined": StrictUndefined if debug else _EmptyUndefined,
        "finalize": _finalize,
    }
    if host is not None:
        options |= {name: getattr(host, name) for name in _SYNTAX}
        options["extensions"] = [type(extension) for extension in host.extensions.values()]
    environment = _CLASSES[kind](**options)
    if host is not None:
        environment.filters.update(host.filters)
        environment.tests.update(host.tests)
        environment.globals.update({name: value for name, value in host.globals.items() if name != "range"})
        environment.policies.update(host.policies)
    bound_builtins(environment.filters, environment.globals)
    return environment


_SYNTAX = (
    "block_start_string",
    "block_end_string",
    "variable_start_string",
    "variable_end_string",
    "comment_start_string",
    "comment_end_string",
    "line_statement_prefix",
    "line_comment_prefix",
    "trim_blocks",
    "lstrip_blocks",
    "newline_sequence",
    "keep_trailing_newline",
)


@pass_context
def _finalize(_context: Context, value: Any) -> Any:
    """Check and keep each value that is written, after its filters."""
    rendering = current_rendering.get()
    if rendering.in_subject and not isinstance(value, AuthorText | Markup | Undefined):
        text = str(value)
        if "\n" in text or "\r" in text:
            raise TemplateFailed(rendering.template, f"subject: a value has a line break: {shown(text)}")
    return value if rendering.values is None else rendering.values.keep(value)


def _arguments(node: nodes.Expr | None) -> Iterator[nodes.Node]:
    while isinstance(node, nodes.Filter):
        yield from node.args
        yield from (pair.value for pair in node.kwargs)
        yield from (extra for extra in (node.dyn_args, node.dyn_kwargs) if extra is not None)
        node = node.node
