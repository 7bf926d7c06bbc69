#!/usr/bin/env python3
"""Write docs/api.md from the signatures and docstrings: ``.venv/bin/python scripts/api_reference.py``."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import cast

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"

# The public names of each module, in the order of the page.
SECTIONS: dict[str, tuple[str, list[str]]] = {
    "Sending": (
        "openviper.core.email",
        [
            "send_email",
            "submit_email",
            "send_email_sync",
            "send_many",
            "render_email",
            "BulkProgress",
            "RenderedEmail",
            "preview",
        ],
    ),
    "The answer": ("openviper.core.email", ["Receipt", "DeliveryMode", "Refusal"]),
    "In an application": (
        "openviper.core.email",
        ["Email", "EmailMiddleware", "UnsubscribeEndpoint", "UnsubscribeRequest", "unsubscribe_url", "EmailSettings"],
    ),
    "Addresses and attachments": (
        "openviper.core.email",
        ["Address", "AddressLike", "parse_address", "AttachmentData", "resolve_attachments"],
    ),
    "Hooks and listeners": (
        "openviper.core.email",
        ["EmailMessageData", "Cancel", "subscribe", "MessageEvent", "DeliveryReport"],
    ),
    "Traces": ("openviper.otel", ["instrument", "uninstrument"]),
    "Metrics": ("openviper.metrics", ["observe", "metrics_app", "registry", "sample", "stop_sampling"]),
    "Checks": (
        "openviper.core.email",
        ["verify", "Verification", "health", "Health", "HealthProblem", "HealthEndpoint"],
    ),
    "Backends": ("openviper.core.email", ["EmailBackend", "get_backend", "build_message"]),
    "In tests": (
        "openviper.testing",
        ["Mailbox", "SentMessage", "capture_mail", "Inbox", "AsyncInbox", "InboxMessage"],
    ),
    "Transactions": (
        "openviper.db",
        [
            "transaction",
            "on_commit",
            "Model",
            "LifecycleHooks",
            "engine",
            "create_tables",
            "prepare_sqlite",
            "dispose",
        ],
    ),
    "Outbox": ("openviper.db", ["outbox_tables"]),
    "Journal": ("openviper.db", ["journal_table"]),
    "Suppression": (
        "openviper.db",
        ["add_suppression", "remove_suppression", "find_suppressed", "suppression_table", "create_suppression_table"],
    ),
}

# Functions whose arguments and errors another one's docstring describes.
_DESCRIBED_BY = {"send_email": "submit_email"}

# Members for the framework that calls them, not for users; settings have a page of their own.
_HIDDEN = {
    "Email.name", "Email.lifespan", "Email.wrap", "EmailMiddleware.surrounded", "EmailSettings.add_implied",
    "EmailSettings.read_nested", "UnsubscribeEndpoint.name", "SentMessage.make", "SentMessage.with_recipients",
}  # fmt: skip

# Readers search for a task: its page comes before the names that have "email" in them.
_INTRODUCTION = """\
---
search:
  boost: 0.3
---

# API

<!-- Written by scripts/api_reference.py from the docstrings; change them there. -->

Each name is imported from the module that heads its section. Errors have [a page of their own](errors.md).
"""

_WIDTH = 78


def page() -> str:
    """Return the page's text."""
    package = griffe.load("openviper", search_paths=[ROOT], docstring_parser="google", resolve_aliases=True)
    parts = [_INTRODUCTION]
    for title, (module, names) in SECTIONS.items():
        parts.append(f"## {title}\n\n`from {module} import ...`\n")
        members = package[module.removeprefix("openviper.")]
        for name in names:
            member = _target(members[name])
            if isinstance(member, griffe.Module):  # a function hides the submodule of its name
                member = _hidden(package, members, name)
            parts += _entry(name, member, members.members)
    return "\n".join(parts)


def _hidden(package: griffe.Object | griffe.Alias, module: griffe.Object | griffe.Alias, name: str) -> griffe.Object:
    """Return the function that a submodule of its name hides in ``module``, or in what that imports it from."""
    member = _visited(module)[name]
    while isinstance(member, griffe.Alias):
        path, _, name = member.target_path.rpartition(".")
        module = package[path.removeprefix("openviper.")]
        member = module.members[name]
        if isinstance(member, griffe.Module):
            member = _visited(module)[name]
    return member


def _visited(module: griffe.Object | griffe.Alias) -> griffe.Module:
    """Return the module by its own source alone, without its submodules."""
    path = cast("Path", module.filepath)
    return griffe.visit(module.name, filepath=path, code=path.read_text(encoding="utf-8"), docstring_parser="google")


def _entry(name: str, member: griffe.Object, siblings: dict[str, griffe.Object | griffe.Alias]) -> Iterator[str]:
    yield f"### {name}\n"
    if isinstance(member, griffe.Function):
        yield _signature(name, member)
        yield from _docstring(member, described_by=_DESCRIBED_BY.get(name), siblings=siblings)
    elif isinstance(member, griffe.Class):
        yield from _class(name, member)
    else:
        yield f"```text\n{name} = {_source(member)}\n```\n"
        yield from _docstring(member)


def _class(name: str, member: griffe.Class) -> Iterator[str]:
    bases = ", ".join(str(base) for base in member.bases)
    yield f"```text\nclass {name}{f'({bases})' if bases else ''}\n```\n"
    yield from _docstring(member)
    shown = [
        (key, _target(value))
        for key, value in member.members.items()
        if not key.startswith("_") and f"{name}.{key}" not in _HIDDEN
    ]
    fields = [(key, value) for key, value in shown if isinstance(value, griffe.Attribute)]
    if fields and name != "EmailSettings":
        yield (
            "\n".join(["| attribute | type | |", "|---|---|---|", *(_field(key, value) for key, value in fields)])
            + "\n"
        )
    for key, value in shown:
        if isinstance(value, griffe.Function):
            yield f"#### {name}.{key}\n"
            yield _signature(key, value)
            yield from _docstring(value)


def _field(name: str, member: griffe.Attribute) -> str:
    texts = [section.value for section in _sections(member) if isinstance(section, griffe.DocstringSectionText)]
    type_or_value = member.annotation if member.annotation is not None else member.value
    return f"| `{name}` | {_code(type_or_value)} | {_line(' '.join(texts))} |"


def _signature(name: str, function: griffe.Function) -> str:
    parameters = [parameter for parameter in function.parameters if parameter.name not in ("self", "cls")]
    words, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is griffe.ParameterKind.keyword_only and not keyword_only:
            keyword_only = True
            words.append("*")
        if parameter.kind is griffe.ParameterKind.var_positional:
            keyword_only = True
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            cast("griffe.ParameterKind", parameter.kind), ""
        )
        default = f"={parameter.default}" if parameter.default is not None and not star else ""
        words.append(f"{star}{parameter.name}{default}")
    awaits, returns = _call(function)
    line = f"{awaits}{name}({', '.join(words)}){returns}"
    if len(line) <= _WIDTH:
        return f"```text\n{line}\n```\n"
    arguments = "\n".join(wrap(", ".join(words), _WIDTH, initial_indent="    ", subsequent_indent="    "))
    return f"```text\n{awaits}{name}(\n{arguments},\n){returns}\n```\n"


def _call(function: griffe.Function) -> tuple[str, str]:
    """Return what stands before a call and after it."""
    result = str(function.returns) if function.returns is not None else ""
    yielded = re.sub(r"^\w+\[(.*)\]$", r"\1", result).removesuffix(", None")
    decorators = {str(decorator.value).rpartition(".")[2] for decorator in function.decorators}
    if "asynccontextmanager" in decorators:
        return "async with ", f" as {yielded}"
    if "contextmanager" in decorators:
        return "with ", f" as {yielded}"
    if result.startswith(("AsyncIterator", "AsyncGenerator")):
        return "async for ", f" -> {yielded}"
    return "await " if "async" in function.labels else "", f" -> {result}" if result else ""


def _docstring(
    member: griffe.Object,
    described_by: str | None = None,
    siblings: dict[str, griffe.Object | griffe.Alias] | None = None,
) -> Iterator[str]:
    sections = _sections(member)
    described: griffe.Object = member
    if described_by is not None and siblings is not None:
        described = _target(siblings[described_by])
        sections += [
            section for section in _sections(described) if section.kind is not griffe.DocstringSectionKind.text
        ]
    elsewhere = next((name for name, other in _DESCRIBED_BY.items() if member.name == other), None)
    for section in sections:
        match section:
            case griffe.DocstringSectionText():
                yield _markdown(section.value).strip() + "\n"
            case griffe.DocstringSectionParameters() if elsewhere is None:
                yield _arguments(section.value)
            case griffe.DocstringSectionRaises() if elsewhere is None:
                yield "Raises:\n\n" + "".join(
                    f"- {_code(item.annotation)}: {_line(item.description)}\n" for item in section.value
                )
            case griffe.DocstringSectionReturns() | griffe.DocstringSectionYields():
                yield "".join(f"Returns {_line(item.description)}\n" for item in section.value)
            case griffe.DocstringSectionParameters() | griffe.DocstringSectionRaises():
                pass
            case _:
                raise ValueError(f"{member.path}: a docstring section of the kind {section.kind.value} is not written")
    if elsewhere is not None:
        yield f"Takes the arguments and raises the errors of [`{elsewhere}`](#{elsewhere}).\n"


def _arguments(items: Sequence[griffe.DocstringParameter]) -> str:
    lines = [f"| `{item.name}` | {_line(item.description)} |" for item in items]
    return "\n".join(["| argument | |", "|---|---|", *lines]) + "\n"


def _sections(member: griffe.Object) -> list[griffe.DocstringSection]:
    return list(member.docstring.parse("google")) if member.docstring else []


def _target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    return member.final_target if isinstance(member, griffe.Alias) else member


def _source(member: griffe.Object) -> str:
    value = getattr(member, "value", None)
    return str(value) if value is not None else ""


def _code(annotation: object) -> str:
    return f"`{annotation}`".replace("|", "\\|") if annotation is not None else ""


def _line(text: str) -> str:
    return " ".join(_markdown(text).split()).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Return a docstring's reStructuredText as Markdown."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)
    text = re.sub(r"^ *::\n\n((?: {4}.*\n?|\n)+)", _block, text, flags=re.MULTILINE)
    return text.replace("``", "`")


def _block(block: re.Match[str]) -> str:
    lines = "\n".join(line.removeprefix("    ") for line in block[1].rstrip().split("\n"))
    return f"```text\n{lines}\n```\n\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
