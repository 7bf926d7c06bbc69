"""List mail templates, and render each of them with sample values."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2s
from pathlib import PurePosixPath
from typing import Any

from jinja2 import TemplateError

from openviper.core.email.errors import TemplateFailed
from openviper.core.email.inbox.samples import Sample, Variable, build_context, make_example
from openviper.core.email.inbox.template_usage import read_variable_uses
from openviper.core.email.templates import RenderedTemplate, TemplateRenderer
from openviper.exceptions import OpenViperError

__all__ = ["ListedTemplate", "Preview", "list_templates", "preview", "signature"]

_SAMPLE = ".sample.json"


@dataclass(frozen=True, slots=True)
class ListedTemplate:
    """A template under its name for ``send_email``; ``kinds`` are its suffixes, ``mail`` is True in a mail folder."""

    name: str
    kinds: tuple[str, ...]
    mail: bool


@dataclass(slots=True)
class Preview:
    """A template rendered with sample values, or the error that prevents it.

    ``sample_name``: the file that its values may come from; ``sample_text``: a suggestion for its content; ``unused``:
    names in the file that the template does not use.
    """

    name: str
    sample_name: str
    sample_found: bool = False
    sample_text: str = "{}"
    variables: list[Variable] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    context: Mapping[str, Any] = field(default_factory=Sample)
    rendered: RenderedTemplate | None = None
    error: str = ""

    @property
    def version(self) -> str:
        """Return a value that differs when the HTML part differs."""
        html = "" if self.rendered is None else self.rendered.html or ""
        return blake2s(html.encode(), digest_size=4).hexdigest()

    @property
    def missing(self) -> list[str]:
        """Return the variables that the sample file lacks."""
        return [variable.path for variable in self.variables if not variable.given] if self.sample_found else []


def list_templates(renderer: TemplateRenderer) -> list[ListedTemplate]:
    """Return all templates, with the files of one stem as one template. Reads folders: use a thread."""
    stems: dict[str, list[str]] = {}
    for name in renderer.library.names():
        path = PurePosixPath(name)
        # A stem with a dot would be read as a name with that suffix.
        stem = name if "." in path.stem else str(path.with_suffix(""))
        stems.setdefault(stem, []).append(path.suffix[1:])
    return [ListedTemplate(name, tuple(sorted(kinds)), _is_mail(name)) for name, kinds in sorted(stems.items())]


async def preview(renderer: TemplateRenderer, name: str) -> Preview:
    """Render ``name`` with the values of ``<name>.sample.json`` beside it, and sample values for the rest."""
    try:
        found = await asyncio.to_thread(_read, renderer, name)
    except TemplateFailed as error:
        return Preview(name, name + _SAMPLE, error=str(error))
    if not found.error:
        try:
            found.rendered = await renderer.render(name, found.context)
        except OpenViperError as error:
            found.error = str(error)
    return found


def signature(renderer: TemplateRenderer, name: str) -> object:
    """Return a value that differs when a file that ``name`` is rendered from changes. Reads files: use a thread."""
    try:
        files = tuple(renderer.library.trees(name))
    except TemplateFailed as error:
        return str(error)
    samples = (f"{name}{_SAMPLE}", f"{PurePosixPath(name).with_suffix('')}{_SAMPLE}")
    return tuple((file, renderer.library.source(file)) for file in (*files, *samples))


def _read(renderer: TemplateRenderer, name: str) -> Preview:
    trees = renderer.library.trees(name)
    sample_name, text = _read_sample(renderer, name)
    result = Preview(name, sample_name, sample_found=text is not None)
    given: Any = {}
    if text is not None:
        try:
            given = json.loads(text)
        except ValueError as error:
            result.error = f"{sample_name} is not valid JSON: {error}"
            return result
        if not isinstance(given, dict):
            result.error = f"{sample_name} must contain an object whose names are the variables"
            return result
    try:
        uses = read_variable_uses(trees.values(), renderer.library.globals)
    except TemplateError as error:
        result.error = f"{name}: {error}"
        return result
    result.context, variables = build_context(uses, given)
    result.variables = list(dict.fromkeys(variables))
    result.unused = [key for key in given if key not in uses]
    result.sample_text = json.dumps(make_example(uses, given), indent=2, ensure_ascii=False)
    return result


def _read_sample(renderer: TemplateRenderer, name: str) -> tuple[str, str | None]:
    """Return the name and text of a template's sample file; the text is None if there is no such file."""
    short = f"{PurePosixPath(name).with_suffix('')}{_SAMPLE}"
    for file in (f"{name}{_SAMPLE}", short):
        if (text := renderer.library.source(file)) is not None:
            return file, text
    return short, None


def _is_mail(name: str) -> bool:
    *folders, last = name.lower().split("/")
    return any("mail" in folder for folder in folders) and not last.startswith("_")
