"""The code blocks of the pages that users read, and running them as a user would: as programs in a fresh process."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.patience import PATIENCE

__all__ = ["ROOT", "Block", "Ran", "blocks", "included", "normalised", "pages", "run", "run_tests"]

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The block is a file of docs, which scripts/write_examples.py wrote into the page; tests/docs runs those files.
_INCLUDED = re.compile(r"<!-- (examples/[\w./-]+) -->\n\Z")
# The block is code for another library, named there, which is not installed.
_OF_ANOTHER_LIBRARY = re.compile(r"<!-- (before: [\w. -]+) -->\n\Z")
# "`templates/emails/welcome.md`:" before a block says that the block is that file.
_FILE_NAME = re.compile(r"`([\w./-]+\.\w+)`:\n\n\Z")

# What blocks attach, as their readers have such files.
_READERS_FILES = {"data/export.csv": b"order,total\n1234,99.00\n", "img/logo.png": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True)
class Block:
    """A fenced block. ``printed`` is the text block that follows it; ``files`` are those that its page shows."""

    page: str
    line: int
    language: str
    code: str
    printed: str | None = None
    files: dict[str, str] = field(default_factory=dict)

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
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("run_block.py"), "block.py", "then.py", "sent.json"],
        cwd=folder,
        env={**_environment(folder), **memory, **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{block.name} failed:\n{done.stdout}{done.stderr}"
    return Ran(done.stdout, json.loads((folder / "sent.json").read_text()))


def run_tests(block: Block, folder: Path) -> str:
    """Run a block that holds tests with pytest, which must pass; returns what pytest says."""
    _write(block, folder)
    (folder / "test_block.py").write_text(block.code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_block.py"],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{block.name} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def normalised(text: str) -> str:
    """``text`` with what differs from run to run, the date and the message id, made the same."""
    text = re.sub(r"\w{3}, \d{2} \w{3} \d{4} \d{2}:\d{2}:\d{2} \+0000", "DATE", text)
    return re.sub(r"<[0-9a-f]{32}@", "<ID@", text)


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
        yield Block(page, line, fence[1], fence[2], printed, files), name[1] if name else None
