"""Change one expression at a time, and report the changes that no test detects (mutation testing).

.venv/bin/python scripts/mutate.py                        # addresses and headers, 300 changes picked at random
.venv/bin/python scripts/mutate.py openviper/core/email/events.py --tests tests/core/email/sending

It works on a copy of the tree. A change that no test detects is either equivalent, or a test is missing.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAIL = "openviper/core/email/"
FILES = [f"{MAIL}{name}.py" for name in ("addresses", "message/validation", "message/header_lines")]
TESTS = [
    f"tests/core/email/{name}.py"
    for name in ("test_addresses", "message/test_prepare", "message/test_hostile_headers", "message/test_serialiser")
]
SECONDS = 180
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
}


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the changed forms of ``node`` itself."""
    other: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        other.ops[0] = SWAPPED[type(other.ops[0])]()
        yield other
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(node.op) in SWAPPED:
        other.op = SWAPPED[type(other.op)]()
        yield other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield other.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | str | bytes):
        yield ast.Constant(_other_value(node.value))
    elif isinstance(node, ast.Raise | ast.Continue | ast.Break):
        yield ast.Pass()
    elif isinstance(node, ast.If | ast.IfExp):
        other.test = ast.Constant(value=False)
        yield other
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(value=None))


def _other_value(value: int | str | bytes) -> int | str | bytes:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if value:
        return value[:-1]
    return "x" if isinstance(value, str) else b"x"


def places(tree: ast.AST, *, text: bool = False) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield each node that may change, with its place; skips annotations, docstrings and error texts."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                continue
            if isinstance(node, ast.ImportFrom | ast.Import) or _is_all(node):
                continue
            in_text = text or isinstance(tree, ast.Raise | ast.JoinedStr)
            if not (in_text and isinstance(node, ast.Constant | ast.IfExp)):
                yield tree, name, index if isinstance(value, list) else None, node
            yield from places(node, text=in_text)


def _is_all(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def mutants(file: str) -> Iterator[tuple[str, str]]:
    """Yield each change's description, and the whole source with that change."""
    tree = ast.parse((ROOT / file).read_text())
    for parent, field, index, node in places(tree):
        for other in changed(node):
            before = ast.unparse(node).splitlines()[0]
            _put(parent, field, index, other)
            source = ast.unparse(ast.fix_missing_locations(tree))
            after = ast.unparse(other).splitlines()[0]
            _put(parent, field, index, node)
            yield f"{file}:{getattr(node, 'lineno', 0)}: {before}  ->  {after}", source


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def survives(tree: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
    try:
        done = subprocess.run(  # noqa: S603 - our own tests
            command,
            cwd=tree,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--limit", type=int, default=300, help="number of changes, chosen at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--tests", nargs="+", default=TESTS)
    arguments = parser.parse_args()
    tests = arguments.tests
    found = [(file, *mutant) for file in arguments.files for mutant in mutants(file)]
    chosen = sorted(random.Random(arguments.seed).sample(found, min(arguments.limit, len(found))))  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        if not survives(tree, tests):
            sys.exit("the tests fail without any change: fix them first")
        survivors = 0
        for file, description, source in chosen:
            (tree / file).write_text(source)
            if survives(tree, tests):
                survivors += 1
                sys.stdout.write(f"{description}\n")
                sys.stdout.flush()
            shutil.copyfile(ROOT / file, tree / file)
    sys.stdout.write(f"{len(chosen)} of {len(found)} changes tried, {survivors} detected by no test\n")


if __name__ == "__main__":
    main()
