"""The code blocks of the pages that users read, and running them as a user would: each in a process of its own."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.programs import run_program, run_pytest

__all__ = [
    "ROOT",
    "Block",
    "Ran",
    "all_blocks",
    "blocks",
    "commands",
    "included",
    "normalised",
    "pages",
    "run",
    "run_tests",
    "unproved",
]

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The block is a file of docs, which scripts/write_examples.py wrote into the page; tests/docs runs those files.
_INCLUDED = re.compile(r"<!-- (examples/[\w./-]+) -->\n\Z")
# The block is code for another library, named there, which is not installed.
_OF_ANOTHER_LIBRARY = re.compile(r"<!-- (before: [\w. -]+) -->\n\Z")
# The block is not run, for the reason that is named there.
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\Z")
# "`templates/emails/welcome.md`:" before a block says that the block is that file.
_FILE_NAME = re.compile(r"`([\w./-]+\.\w+)`:\n\n\Z")

# What blocks attach, as their readers have such files.
_READERS_FILES = {"data/export.csv": b"order,total\n1234,99.00\n", "img/logo.png": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True)
class Block:
    """A fenced block. ``printed`` is the text block that follows it; ``files`` are those that its page shows.

    ``reason``: why it is not run, as a comment above it says.
    """

    page: str
    line: int
    language: str
    code: str
    printed: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    reason: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def awaits(self) -> bool:
        """Whether it stands for the inside of an ``async def``."""
        return re.search(r"^(await|async with|async for|\w+ = await)\b", self.code, re.MULTILINE) is not None


@dataclass(frozen=True)
class Ran:
    """What a block has printed, and the messages that it gave to the memory backend, as far as they are of interest."""

    output: str
    sent: list[dict[str, Any]]


def pages() -> list[Path]:
    """Every page of the repository that is written for people."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("example_shop/*.md")])


def blocks(page: str, language: str = "python") -> list[Block]:
    """The blocks of ``page`` (relative to the repository) in that language, but files and code for another library."""
    return [block for block, shown_file in _all_blocks(page) if block.language == language and shown_file is None]


def all_blocks(page: str) -> list[Block]:
    """Return every block of ``page``, of any language and origin."""
    return [block for block, _ in _all_blocks(page)]


def unproved(page: str) -> list[str]:
    """Return the places of blocks of ``page`` that no test runs or compares and that do not say why not.

    Proved are Python, files of docs/examples and those that a page's programs read, what a program prints, commands
    that ``tests/test_docs.py`` looks up, and data that it parses.
    """
    found = []
    before: Block | None = None
    for block, shown_file in _all_blocks(page):
        program = before is not None and before.language == "python" and "def test_" not in before.code
        proved = (
            shown_file is not None
            or block.language in ("python", "json", "toml", "yaml")
            or (block.language == "text" and program)
            or (block.language == "console" and all(map(_is_looked_up, commands(block))))
        )
        if not proved and block.reason is None:
            found.append(block.name)
        before = block
    return found


def commands(block: Block) -> list[str]:
    """Return the commands of a block for a terminal, each in one line and without its comment."""
    joined = re.sub(r"\\\n\s*", "", block.code)
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in joined.splitlines()]


def _is_looked_up(command: str) -> bool:
    return (
        re.match(r"(\w+=\S+ )*(viperctl|pip (un)?install|\./(scripts|benchmarks)/|\.venv/bin/python) ?", command)
        is not None
    )


def included() -> set[Path]:
    """The files of docs/examples that blocks of the docs show."""
    shown = [name for page in ROOT.glob("docs/*.md") for _, name in _all_blocks(str(page.relative_to(ROOT)))]
    return {ROOT / "docs" / name for name in shown if name is not None and name.startswith("examples/")}


def run(block: Block, folder: Path, *, then: str = "", env: dict[str, str] | None = None) -> Ran:
    """Run ``block`` in ``folder``, followed by the code ``then`` in the same namespace; it must end well.

    A block that awaits runs on an event loop, with mail kept in memory. An ``app`` that it defines is started, each of
    its routes is called once, and it is shut down. An ``EMAIL`` is checked as the settings module's.
    """
    _write(block, folder)
    (folder / "block.py").write_text(block.code)
    (folder / "then.py").write_text(then)
    memory = {"EMAIL_BACKEND": "MemoryBackend", "EMAIL_DEFAULT_SENDER": "orders@shop.example"} if block.awaits else {}
    ended = run_program(folder, {**_environment(folder), **memory, **(env or {})})
    assert ended.status == 0, f"{block.name} failed:\n{ended.output}{ended.errors}"
    return Ran(ended.output, json.loads((folder / "sent.json").read_text()))


def run_tests(block: Block, folder: Path) -> str:
    """Run a block that holds tests with pytest, which must pass; returns what pytest says."""
    _write(block, folder)
    (folder / "test_block.py").write_text(block.code)
    ended = run_pytest(folder, _environment(folder), "test_block.py")
    assert ended.status == 0, f"{block.name} failed:\n{ended.output}{ended.errors}"
    return ended.output


def normalised(text: str) -> str:
    """``text`` with what differs from run to run, such as dates and message ids, made the same."""
    text = re.sub(r"\w{3}, \d{2} \w{3} \d{4} \d{2}:\d{2}:\d{2} \+0000", "DATE", text)
    text = re.sub(r'"\d{4}-\d{2}-\d{2}T[\d:.]+\+00:00"', '"TIME"', text)
    text = re.sub(r'"(key|cursor)": "\w+"', r'"\1": "..."', text)
    return re.sub(r"\b[0-9a-f]{32}@", "ID@", text)


def _environment(folder: Path) -> dict[str, str]:
    # This checkout comes first, wherever the package is installed from.
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def _write(block: Block, folder: Path) -> None:
    shown = {name: content.encode() for name, content in block.files.items()}
    for name, content in {**_READERS_FILES, **shown}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _all_blocks(page: str) -> Iterator[tuple[Block, str | None]]:
    source = (ROOT / page).read_text()
    found = list(_FENCE.finditer(source))
    files: dict[str, str] = {}
    for fence in found:
        if name := _FILE_NAME.search(source[: fence.start()]):
            files[name[1]] = fence[2]
    for fence, following in zip(found, [*found[1:], None], strict=False):
        above = source[: fence.start()]
        name = _FILE_NAME.search(above) or _INCLUDED.search(above) or _OF_ANOTHER_LIBRARY.search(above)
        printed = following[2] if following is not None and following[1] == "text" else None
        line = source.count("\n", 0, fence.start()) + 1
        not_run = _NOT_RUN.search(above)
        reason = not_run[1] if not_run else None
        yield Block(page, line, fence[1], fence[2], printed, files, reason), name[1] if name else None
