#!/usr/bin/env python3
"""Draw docs/images/house.svg, the parts of the package and their imports: ``.venv/bin/python scripts/house.py``.

The rows are the layers of the contracts in pyproject.toml, the imports are those of the code, and the words are those
of each part's docstring.
"""

import ast
import re
import sys
import tomllib
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "house.svg"

_MAIL = "openviper.core.email"
_GAP = 8
_NAME, _LINE = 24, 17  # heights in pixels
_LETTER = 7  # width of the small text's letters, of a wide font

_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" role="img" aria-labelledby="title desc">
  <title id="title">The parts of the package</title>
  <desc id="desc">{words}</desc>
  <!-- Drawn by scripts/house.py. It brings its own ground, so that it can be read on a light and on a dark page. -->
  <style>
    .ground {{ fill: #fbfcfb; stroke: #d5ddd7; }}
    text {{ fill: #14201a; font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
    .name {{ font-weight: 700; fill: #12664a; font-size: 15px; }}
    .soft {{ fill: #4c5a52; }}
    .part {{ fill: #eef2ef; stroke: #a9b8ae; }}
    .mail {{ fill: #e3f3ea; stroke: #12664a; }}
    @media (prefers-color-scheme: dark) {{
      .ground {{ fill: #1b211e; stroke: #39443d; }}
      text {{ fill: #e8eeea; }}
      .name {{ fill: #7fd6ae; }}
      .soft {{ fill: #b3c0b8; }}
      .part {{ fill: #27302b; stroke: #5a6a61; }}
      .mail {{ fill: #173528; stroke: #4aa27d; }}
    }}
  </style>
  <rect class="ground" x=".5" y=".5" width="639" height="{ground}" rx="14"/>
"""


class _Drawing:
    """Draws rows from the top to the bottom."""

    def __init__(self, graph: grimp.ImportGraph) -> None:
        self._graph = graph
        self._shapes: list[str] = []
        self._words: list[str] = []
        self._y = 14

    def text(self) -> str:
        """Return the picture drawn so far."""
        height = self._y + 6
        words = escape(" ".join(self._words), quote=False)
        return _HEAD.format(height=height, ground=height - 1, words=words) + "".join(self._shapes) + "</svg>\n"

    def row(self, container: str, layer: str, others: dict[str, str], kind: str, x: int = 14) -> None:
        """Draw one layer: parts beside each other, of which none imports another."""
        names = [name.strip(" ()") for name in layer.split("|")]
        width = (640 - 2 * x - _GAP * (len(names) - 1)) // len(names)
        letters = (width - 24) // _LETTER
        texts = [self._lines(f"{container}.{name}", others, letters) for name in names]
        height = _NAME + _LINE * max(map(len, texts)) + 10
        for number, (name, lines) in enumerate(zip(names, texts, strict=True)):
            left = x + number * (width + _GAP)
            self._shapes.append(
                f'  <rect class="{kind}" x="{left}" y="{self._y}" width="{width}" height="{height}" rx="8"/>\n'
                f'  <text class="name" x="{left + 12}" y="{self._y + 21}">{name}</text>\n'
            )
            for line, words in enumerate(lines):
                y = self._y + _NAME + 14 + line * _LINE
                self._shapes.append(
                    f'  <text class="soft" x="{left + 12}" y="{y}">{escape(words, quote=False)}</text>\n'
                )
        self._y += height + _GAP

    def small(self, names: list[str], kind: str) -> None:
        """Draw the ground: files that know none of the parts above."""
        lines = wrap(", ".join(names), 588 // _LETTER)
        height = _NAME + _LINE * len(lines) + 10
        self._shapes.append(
            f'  <rect class="{kind}" x="14" y="{self._y}" width="612" height="{height}" rx="8"/>\n'
            f'  <text class="name" x="26" y="{self._y + 21}">ground</text>\n'
        )
        for line, words in enumerate(lines):
            y = self._y + _NAME + 14 + line * _LINE
            self._shapes.append(f'  <text class="soft" x="26" y="{y}">{words}</text>\n')
        self._words.append(f"All may import the ground: {', '.join(names)}.")
        self._y += height + _GAP

    def begin(self, name: str) -> int:
        """Begin a frame around rows, and return its top."""
        self._shapes.append(f'  <text class="name" x="26" y="{self._y + 18}">{name}</text>\n')
        self._y += 28
        return self._y - 28

    def end(self, top: int) -> None:
        """Draw the frame that begins at ``top``."""
        height = self._y - top
        self._shapes.append(
            f'  <rect x="14" y="{top}" width="612" height="{height}" rx="8" fill="none" stroke="#12664a"/>\n'
        )
        self._y += _GAP

    def _lines(self, module: str, others: dict[str, str], letters: int) -> list[str]:
        imported = sorted(
            name
            for other, name in others.items()
            if other != module and self._graph.direct_import_exists(importer=module, imported=other, as_packages=True)
        )
        name = module.removeprefix("openviper.")
        self._words.append(f"{name} imports {', '.join(imported) or 'none of the others'}.")
        about = _about(module)
        return [*(wrap(about, letters) if about else []), *wrap(f"imports {', '.join(imported) or 'none'}", letters)]


def picture() -> str:
    """Return the picture as SVG."""
    graph = grimp.build_graph("openviper", cache_dir=None)
    contracts = {each["id"]: each for each in _project()["tool"]["importlinter"]["contracts"]}
    layers: list[str] = contracts["parts"]["layers"]
    rooms: list[str] = contracts["mail"]["layers"]
    parts = {f"openviper.{name}": name for layer in layers for name in _names(layer)}
    inside = {f"{_MAIL}.{name}": name for layer in rooms for name in _names(layer)}
    ground = [name for layer in layers[layers.index("conf") + 1 :] for name in _names(layer)]
    above = {module: name for module, name in parts.items() if name not in (*ground, "core")} | {_MAIL: "core.email"}
    drawing = _Drawing(graph)
    for layer in layers[: layers.index("conf") + 1]:
        kept = " | ".join(name for name in _names(layer) if name != "core")
        drawing.row("openviper", kept, above, "part")
        if "core" in _names(layer):
            top = drawing.begin("core.email")
            for room in rooms:
                drawing.row(
                    _MAIL, room, inside | {f"openviper.{name}": name for name in ("conf", "db", "tasks")}, "mail", x=24
                )
            drawing.end(top)
    drawing.small(ground, "part")
    return drawing.text()


def _names(layer: str) -> list[str]:
    return [name.strip(" ()") for name in layer.split("|")]


def _about(module: str) -> str:
    """Return the first sentence of the module's docstring, without marks."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split()).replace("``", "")
    return re.split(r"\.(?: (?=[A-Z])|$)", first)[0]


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}\n")
