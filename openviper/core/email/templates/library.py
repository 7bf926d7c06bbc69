"""Find, read and compile a project's templates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from jinja2 import (
    ChoiceLoader,
    Environment,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
    UndefinedError,
    meta,
    nodes,
)

from openviper.core.email.errors import TemplateFailed
from openviper.core.email.templates.environment import MailEnvironment, TemplateKind, make_environment
from openviper.core.email.templates.files import FolderLoader, check_name
from openviper.text import cut, shown, suggestion, without_quotes

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["TemplateLibrary"]

_KINDS = {
    ".txt": TemplateKind.TEXT,
    ".html": TemplateKind.HTML,
    ".htm": TemplateKind.HTML,
    ".md": TemplateKind.MARKDOWN,
}
_ALLOWED = ", ".join(_KINDS)
_OF_DJANGO = frozenset(
    {"blocktrans", "blocktranslate", "csrf_token", "load", "now", "static", "trans", "translate", "url"}
)
_NEAR = 0.8  # names in one folder are similar already
_LONGEST = 200  # characters of an error's text, which may quote a value


class TemplateLibrary:
    """The folders and loaders of templates, and an environment for each kind of them, which keeps what it compiled.

    The arguments are those of ``TemplateRenderer``. All methods read files: call them in a thread.
    """

    def __init__(self, dirs: Sequence[Path], *, debug: bool, environment: Environment | None = None) -> None:
        self._dirs = tuple(Path(folder) for folder in dirs)
        self._loader = ChoiceLoader([FolderLoader(self._dirs)])
        if environment is not None and environment.loader is not None:
            self._loader.loaders = [*self._loader.loaders, environment.loader]
        self.environments = {
            kind: make_environment(kind, self._loader, debug=debug, host=environment) for kind in TemplateKind
        }

    @property
    def globals(self) -> frozenset[str]:
        """Return the names that every template can use without context."""
        return frozenset(name for environment in self.environments.values() for name in environment.globals)

    def names(self) -> list[str]:
        """Return the files that the loaders list and that a message may use as templates."""
        found: set[str] = set()
        for loader in self._loader.loaders:
            with suppress(TypeError):  # a loader that cannot say what it has
                found.update(loader.list_templates())
        return sorted(name for name in found if PurePosixPath(name).suffix in _KINDS)

    def source(self, name: str) -> str | None:
        """Return the text of a file beside the templates, such as sample values; None if it is missing.

        Raises:
            TemplateFailed: a name that leaves the folders.
        """
        try:
            return self._loader.get_source(self.environments[TemplateKind.TEXT], check_name(name))[0]
        except TemplateNotFound:
            return None

    def trees(self, name: str) -> dict[str, nodes.Template]:
        """Return the syntax tree of each file that rendering ``name`` may use, if named literally.

        Raises:
            TemplateFailed: no such template, a name that leaves the folders, or a syntax error.
        """
        check_name(name)
        with self.reporting(name):
            return {
                used: tree
                for kind, file in self.files(name)
                for used, tree in self._used_by(self.environments[kind], file)
                if tree is not None
            }

    def files(self, name: str) -> tuple[tuple[TemplateKind, str], ...]:
        """Return the files for ``name``: itself, or without an extension those with that stem.

        Raises:
            TemplateFailed: there is none, or its extension is not that of a template.
        """
        suffix = PurePosixPath(name).suffix
        if suffix:
            kind = _KINDS.get(suffix)
            if kind is None:
                raise TemplateFailed(name, f"the extension {shown(suffix)} is not one of {_ALLOWED}")
            if self.source(name) is None:
                raise TemplateFailed(name, self._not_found(name))
            return ((kind, name),)
        first: dict[TemplateKind, str] = {}
        for suffix, kind in _KINDS.items():
            if kind not in first and self.source(name + suffix) is not None:
                first[kind] = name + suffix
        if not first:
            raise TemplateFailed(name, self._not_found(f"{name} with one of {_ALLOWED}"))
        if len(first) == len(TemplateKind):
            del first[TemplateKind.MARKDOWN]
        return tuple(first.items())

    def compile(self, name: str, files: Sequence[tuple[TemplateKind, str]]) -> bool:
        """Compile all that ``files`` use; False if a template decides only while it runs what it includes.

        Raises:
            TemplateFailed: a syntax error, or a file that cannot be read; ``name`` is what was asked for.
        """
        complete = True
        with self.reporting(name):
            for kind, file in files:
                environment = self.environments[kind]
                for used, tree in self._used_by(environment, file):
                    if tree is None:
                        complete = False  # perhaps "ignore missing": rendering will tell
                        continue
                    environment.get_template(used)
                    complete = complete and None not in meta.find_referenced_templates(tree)
        return complete

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Convert errors raised inside to ``TemplateFailed`` for the requested template."""
        try:
            yield
        except TemplateFailed as error:
            if error.template == name:
                raise
            raise self._failure(name, error) from error
        except Exception as error:  # noqa: BLE001 - a template may call anything: a filter, a property, a division
            raise self._failure(name, error) from _telling_cause(error)

    def _used_by(self, environment: MailEnvironment, file: str) -> Iterator[tuple[str, nodes.Template | None]]:
        """Yield ``file`` and the files it uses by literal name, each once; None for a missing file."""
        seen: set[str] = set()
        waiting = [file]
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            source = self.source(current)
            if source is None:
                yield current, None
                continue
            tree = environment.parse(source, current)
            yield current, tree
            waiting.extend(used for used in meta.find_referenced_templates(tree) if used is not None)

    def _failure(self, name: str, error: Exception) -> TemplateFailed:
        if isinstance(error, TemplateSyntaxError):
            where = f"{error.name}, " if error.name not in {None, name} else ""
            message = error.message or ""
            # Jinja names the tag in quotes.
            django = "unknown tag" in message and not _OF_DJANGO.isdisjoint(message.split("'"))
            remedy = " Templates are Jinja2, which does not have this Django tag." if django else ""
            return TemplateFailed(name, f"{where}line {error.lineno}: {cut(message, _LONGEST)}{remedy}")
        if isinstance(error, TemplateNotFound):
            description = self._not_found(str(error.name))
        elif isinstance(error, UndefinedError):
            description = f"{cut(str(error), _LONGEST)}; give it in context, or test for it: {{% if ... is defined %}}"
        elif isinstance(error, TemplateError | TemplateFailed):
            description = cut(str(error), _LONGEST)
        else:
            # int("..."), say, quotes the value, which may be a customer's.
            text = without_quotes(str(error)) if isinstance(error, ValueError) else str(error)
            description = cut(f"{type(error).__name__}: {text}", _LONGEST)
        return TemplateFailed(name, f"{_place(error, name)}{description}")

    def _not_found(self, name: str) -> str:
        if any(mark in name for mark in "<{\n"):
            return "this is a template's text, not the name of a file; give text as text= or html="
        searched = ", ".join(str(folder.absolute()) for folder in self._dirs) or "no folder: set TEMPLATES_DIR"
        more = " and in the application's own loader" if len(self._loader.loaders) > 1 else ""
        if missing := [str(folder.absolute()) for folder in self._dirs if not folder.is_dir()]:
            return f"there is no {name}, since there is no folder {', '.join(missing)}{more}; correct TEMPLATES_DIR"
        return f"there is no {name} in {searched}{more}{self._nearest(name.partition(' ')[0])}"

    def _nearest(self, name: str) -> str:
        """Return a suggestion of the file, or the stem, that is nearest to ``name``; empty if none is near."""
        known = self.names()
        stems = [str(PurePosixPath(each).with_suffix("")) for each in known]
        for folder in self._dirs:
            # Files are named below the folder, whose own name is easily given as well.
            if (below := name.removeprefix(f"{folder.name}/")) in {*known, *stems}:
                return f"; did you mean '{below}'?"
        return suggestion(name, known if PurePosixPath(name).suffix else stems, cutoff=_NEAR)


def _telling_cause(error: Exception) -> Exception | None:
    """Return ``error``, or None if our own text has all that it says, so that Jinja's frames would only bury it."""
    return None if isinstance(error, TemplateSyntaxError | TemplateNotFound | UndefinedError) else error


def _place(error: Exception, name: str) -> str:
    """Return the template line that raised ``error``: the innermost one that Jinja has mapped back."""
    place = ""
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if "__jinja_exception__" in traceback.tb_frame.f_globals:
            file = traceback.tb_frame.f_code.co_filename
            place = f"line {traceback.tb_lineno}: " if file.endswith(name) else f"{file}, line {traceback.tb_lineno}: "
        traceback = traceback.tb_next
    return place
