"""List mail templates, and render each of them with sample values."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from jinja2 import TemplateError, nodes

from openviper.core.email.errors import TemplateFailed
from openviper.core.email.inbox.frame import html_version
from openviper.core.email.inbox.samples import Sample, Variable, build_context, make_example
from openviper.core.email.inbox.template_usage import read_variable_uses
from openviper.core.email.message.plaintext import html_to_text
from openviper.core.email.templates import RenderedTemplate, TemplateRenderer
from openviper.exceptions import OpenViperError

__all__ = ["ListedTemplate", "Preview", "list_templates", "preview", "signature"]

_SAMPLE = ".sample.json"


@dataclass(frozen=True, slots=True)
class ListedTemplate:
    """A template under its name for ``send_email``; ``kinds`` are its suffixes, ``mail`` is True in a mail folder.

    ``role`` is "layout" if another template extends it, "partial" if another one includes or imports it, else empty.
    """

    name: str
    kinds: tuple[str, ...]
    mail: bool
    role: str = ""


@dataclass(slots=True)
class Preview:
    """A template rendered with sample values, or the error that prevents it.

    ``sample_name``: the file that its values may come from; ``sample_text``: a suggestion for its content; ``unused``:
    names in the file that the template does not use; ``text`` is the text part, also one that is derived from the HTML;
    ``edited``: the values are those of the page, not of the file; ``readable``: False if the template's variables
    cannot be read, so that nothing is known of them.
    """

    name: str
    sample_name: str
    sample_found: bool = False
    sample_text: str = "{}"
    variables: list[Variable] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    context: Mapping[str, Any] = field(default_factory=Sample)
    rendered: RenderedTemplate | None = None
    text: str | None = None
    edited: bool = False
    readable: bool = False
    error: str = ""

    @property
    def version(self) -> str:
        """Return a value that differs when the HTML part differs."""
        return html_version("" if self.rendered is None else self.rendered.html or "")

    @property
    def missing(self) -> list[str]:
        """Return the variables that the sample file lacks."""
        taken = self.sample_found and not self.error
        return [variable.path for variable in self.variables if not variable.given] if taken else []


def list_templates(renderer: TemplateRenderer) -> list[ListedTemplate]:
    """Return all templates, with the files of one stem as one template. Reads folders: use a thread."""
    stems: dict[str, list[str]] = {}
    names = renderer.library.names()
    roles = _roles(renderer, names)
    stem_roles: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        # A stem with a dot would be read as a name with that suffix.
        stem = name if "." in path.stem else str(path.with_suffix(""))
        stems.setdefault(stem, []).append(path.suffix[1:])
        stem_roles[stem] = roles.get(name) or stem_roles.get(stem, "")
    return [
        ListedTemplate(name, tuple(sorted(kinds)), _is_mail(name), stem_roles[name])
        for name, kinds in sorted(stems.items())
    ]


async def preview(renderer: TemplateRenderer, name: str, *, values: str | None = None) -> Preview:
    """Render ``name`` with the values of ``<name>.sample.json`` beside it, and sample values for the rest.

    ``values`` is JSON in place of that file's content; None: the file's.
    """
    try:
        found = await asyncio.to_thread(_read, renderer, name, values)
    except TemplateFailed as failed:
        return Preview(name, name + _SAMPLE, error=str(failed))
    except RecursionError:
        # The JSON decoder and what reads its values work recursively.
        error = f"{name}: the values or the template are nested too deeply"
        return Preview(name, name + _SAMPLE, edited=values is not None, error=error)
    if not found.error:
        try:
            found.rendered = await renderer.render(name, found.context)
            found.text = found.rendered.text
            if found.text is None and found.rendered.html is not None:
                found.text = await asyncio.to_thread(html_to_text, found.rendered.html)
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


def _read(renderer: TemplateRenderer, name: str, values: str | None) -> Preview:
    trees = renderer.library.trees(name)
    sample_name, text = _read_sample(renderer, name)
    result = Preview(name, sample_name, sample_found=text is not None, edited=values is not None)
    if values is not None:
        text, result.sample_text = values, values
        sample_name = result.sample_name = "your edit"
    try:
        uses = read_variable_uses(trees.values(), renderer.library.globals)
    except TemplateError as error:
        result.error = f"{name}: {error}"
        return result
    result.readable = True
    given: dict[str, Any] = {}
    if text is not None:
        given, result.error = _parse_values(text, sample_name)
    result.context, variables = build_context(uses, given)
    result.variables = list(dict.fromkeys(variables))
    result.unused = [key for key in given if key not in uses]
    if not (result.edited and result.error):  # a faulty edit is shown as it is, to be mended
        result.sample_text = json.dumps(make_example(uses, given), indent=2, ensure_ascii=False)
    return result


def _parse_values(text: str, name: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object in ``text``, or an empty one and why it cannot be taken; ``name`` is the text's."""
    try:
        given = json.loads(text)
    except ValueError as error:
        return {}, f"{name} is not valid JSON: {error}"
    if not isinstance(given, dict):
        return {}, f"{name} must contain an object whose names are the variables"
    return given, ""


def _read_sample(renderer: TemplateRenderer, name: str) -> tuple[str, str | None]:
    """Return the name and text of a template's sample file; the text is None if there is no such file."""
    short = f"{PurePosixPath(name).with_suffix('')}{_SAMPLE}"
    for file in (f"{name}{_SAMPLE}", short):
        if (text := renderer.library.source(file)) is not None:
            return file, text
    return short, None


def _roles(renderer: TemplateRenderer, names: Iterable[str]) -> dict[str, str]:
    """Return "layout" or "partial" for each file that another one extends, or includes or imports, by its name."""
    roles: dict[str, str] = {}
    seen: set[str] = set()
    for name in names:
        if name in seen:
            continue
        try:
            trees = renderer.library.trees(name)
        except TemplateFailed:
            continue  # its own page shows the error
        for file, tree in trees.items():
            if file in seen:
                continue
            seen.add(file)
            for node in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
                target = getattr(node, "template", None)
                for used in _constants(target):
                    if isinstance(node, nodes.Extends):
                        roles[used] = "layout"
                    else:
                        roles.setdefault(used, "partial")
    return roles


def _constants(node: object) -> list[str]:
    """Return the names that a node gives literally: one, or a list of which the first that exists is used."""
    values = node.value if isinstance(node, nodes.Const) else None
    if isinstance(node, nodes.List | nodes.Tuple):
        values = [item.value for item in node.items if isinstance(item, nodes.Const)]
    return [values] if isinstance(values, str) else [one for one in values or () if isinstance(one, str)]


def _is_mail(name: str) -> bool:
    *folders, last = name.lower().split("/")
    return any("mail" in folder for folder in folders) and not last.startswith("_")
