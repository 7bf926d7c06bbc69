"""``__all__`` of every public module is true."""

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import openviper

TESTS = Path(__file__).parent


def public_modules() -> list[str]:
    """Every module of the package whose path has no private part."""
    found = pkgutil.walk_packages(openviper.__path__, "openviper.")
    names = [module.name for module in found if not any(part.startswith("_") for part in module.name.split("."))]
    return ["openviper", *names]


def defined_names(module: str) -> set[str]:
    """The public functions and classes that the module's own file defines at its top."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


@pytest.mark.parametrize("name", public_modules())
def test_all_names_exactly_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed)), "a name is listed twice"
    assert [missing for missing in listed if not hasattr(module, missing)] == []
    assert defined_names(name) - set(listed) == set()


@pytest.mark.parametrize(
    "name", ["openviper", "openviper.core.email", "openviper.db", "openviper.tasks", "openviper.testing"]
)
def test_the_consumer_that_is_type_checked_uses_every_public_name(name: str) -> None:
    """Ruff finds those that it imports and does not use."""
    tree = ast.parse((TESTS / "typing" / "consumer.py").read_text())
    imported = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == name
        for alias in node.names
    }
    assert set(importlib.import_module(name).__all__) - imported - {"__version__"} == set()
