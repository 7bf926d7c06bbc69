#!/usr/bin/env python3
"""Count function docstrings that begin with a noun clause instead of a verb.

Prints their places and their share, and exits with 1 if the share is above the limit. Takes files or folders; the
default is the package and the example shop.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["LIMIT", "Docstring", "docstrings", "docstrings_of", "main"]

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "openviper", ROOT / "example_shop")
LIMIT = 5.0  # per cent

# First words of noun clauses. A docstring that begins with a verb is easier to read.
NOUN_CLAUSE = re.compile(
    r"(the|a|an|what|one|those|whether|where|who|how|when|which|that"
    r"|all|every|each|another|none|bytes|seconds|its)\b",
    re.IGNORECASE,
)


class Docstring(NamedTuple):
    """A function's docstring: its place and its first line."""

    path: Path
    line: int
    function: str
    first_line: str

    @property
    def is_noun_clause(self) -> bool:
        """True if the first word begins a noun clause; code in backquotes does not count as a word."""
        return NOUN_CLAUSE.match(self.first_line) is not None

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.function}: {self.first_line}"


def docstrings(paths: Iterable[Path]) -> Iterator[Docstring]:
    """Yield the docstring of each function in the files, and in the Python files below the folders, of ``paths``."""
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield from docstrings_of(file.read_text(encoding="utf-8"), file)


def docstrings_of(source: str, path: Path) -> Iterator[Docstring]:
    """Yield the docstring of each function, method and nested function of ``source``; ``path`` names its place."""
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            yield Docstring(path, node.body[0].lineno, node.name, text.partition("\n")[0])


def main(arguments: list[str] | None = None) -> int:
    """Print the count and return the exit status; ``arguments`` None means those of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=FOLDERS)
    parser.add_argument("--limit", type=float, default=LIMIT, help="per cent that pass (default: %(default)s)")
    options = parser.parse_args(arguments)
    found = list(docstrings(options.paths))
    wrong = [docstring for docstring in found if docstring.is_noun_clause]
    share = 100 * len(wrong) / max(1, len(found))
    for docstring in wrong:
        sys.stdout.write(f"{docstring}\n")
    sys.stdout.write(
        f"{len(wrong)} of {len(found)} function docstrings begin with a noun clause: {share:.1f} %"
        f" (limit {options.limit:g} %)\n"
    )
    if share > options.limit:
        sys.stdout.write("begin them with a verb: 'Return ...', 'Send ...', 'Yield ...', or 'True if ...'\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
