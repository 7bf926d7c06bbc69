"""The layout of the package: no circle of files, kept import paths, public names."""

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Documented for users of the component: a path that moves breaks their code.
KEPT = {
    "openviper.core.email": """
        Address AddressLike AttachmentData AttachmentRefused AuthenticationFailed BulkProgress Cancel ConnectionFailed
        DeliveryError
        DeliveryMode DeliveryReport DeliveryTimeout DuplicateKey Email EmailBackend EmailError EmailMessageData
        EmailMiddleware EmailSettings Health HealthEndpoint HealthProblem InvalidAddress InvalidMessage KeysUnavailable
        MessageEvent MessageRefused
        PoolTimeout QueueUnavailable Receipt
        RecipientsRefused Refusal RenderedEmail SendingPaused SuppressionUnavailable TemplateFailed UnsubscribeEndpoint
        UnsubscribeRequest Verification
        build_message get_backend health parse_address preview render_email resolve_attachments send_email
        send_email_sync send_many
        submit_email subscribe unsubscribe_url verify
    """,
    "openviper.core.email.addresses": "Address AddressLike Addresses parse_address parse_addresses",
    "openviper.core.email.attachments": "AttachmentData resolve_attachments",
    "openviper.core.email.backends": """
        ConsoleBackend DeliveryReport EmailBackend EmailSettings FileBackend MemoryBackend NullBackend SMTPBackend
        get_backend
    """,
    "openviper.core.email.backends.base": "DeliveryReport EmailBackend",
    "openviper.core.email.backends.memory": "MemoryBackend sent",
    "openviper.core.email.backends.smtp": "SMTPBackend",
    "openviper.core.email.mailbox": "start_recording",
    "openviper.core.email.message": "EmailMessageData OutgoingMessage build_message",
    "openviper.core.email.queue": "enqueue_email_job worker_available",
    "openviper.core.email.settings": "EmailSettings",
}


def python_files(folder: Path) -> dict[str, Path]:
    """Map the dotted name of every module below ``folder`` to its file."""
    files = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_modules(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """Yield the modules of ``known`` that ``path`` imports anywhere: in functions and for type checkers, too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                imported = f"{module}.{alias.name}"
                if imported in known or module in known:
                    yield imported if imported in known else module


def circle_of(files: dict[str, Path]) -> list[str] | None:
    """Return modules that import each other in a circle, the first one repeated at the end; None without any."""
    known = set(files)
    graph = {name: set(imported_modules(name, path, known)) - {name} for name, path in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return None


@pytest.mark.parametrize("folder", ["openviper", "example_shop/shop"])
def test_no_files_import_each_other_in_a_circle(folder: str) -> None:
    files = python_files(ROOT / folder)
    assert len(files) > 10
    assert circle_of(files) is None


@pytest.mark.parametrize(
    "statement",
    [
        "from parts.first import value",
        "from .first import value",
        "from . import first",
        "import parts.first",
        "def f():\n    from .first import value",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .first import value",
    ],
)
def test_a_circle_is_found_however_it_is_imported(tmp_path: Path, statement: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .first import value\n")
    (folder / "first.py").write_text("from parts.second import other\nvalue = other\n")
    (folder / "second.py").write_text("other = 1\n")
    assert circle_of(python_files(folder)) is None
    (folder / "second.py").write_text(f"{statement}\nother = 1\n")
    circle = circle_of(python_files(folder))
    assert circle is not None
    assert set(circle) == {"parts.first", "parts.second"}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in KEPT for name in KEPT[module].split()])
def test_documented_import_paths_stay(module: str, name: str) -> None:
    found = importlib.import_module(module)
    assert name in found.__all__
    assert getattr(found, name) is not None


def test_every_public_name_of_the_component_is_listed_here() -> None:
    assert sorted(KEPT["openviper.core.email"].split()) == sorted(
        importlib.import_module("openviper.core.email").__all__
    )


def foreign_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of everything that ``path`` imports from the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "openviper":
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_public(module: str, name: str) -> bool:
    """True if ``name`` stands in ``__all__`` of ``module`` or is a module of its own."""
    if any(part.startswith("_") for part in [*module.split("."), name]):
        return False
    found = importlib.import_module(module)
    if name in getattr(found, "__all__", ()):
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("folder", ["openviper/cli", "openviper/testing", "example_shop", "tests"])
def test_what_stands_on_top_uses_public_names_only(folder: str) -> None:
    used = {(path, *pair) for path in (ROOT / folder).rglob("*.py") for pair in foreign_names(path)}
    assert used
    assert [(path.name, module, name) for path, module, name in used if not is_public(module, name)] == []
