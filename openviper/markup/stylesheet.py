"""Read style sheets and ``style`` attributes (CSS Syntax 3), in time proportional to their length."""

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Declaration", "Rule", "Stylesheet", "read_declarations", "read_stylesheet"]

# Comments, strings and unquoted addresses may hold what would end a declaration elsewhere. ``<!--`` and ``-->`` may
# stand around a sheet (CDO and CDC).
_PIECE = re.compile(
    r"(/\*(?:[^*]|\*(?!/))*+(?:\*/)?|<!--|-->)"
    r"|\"(?:[^\"\\\n]|\\.)*+\"?|'(?:[^'\\\n]|\\.)*+'?"
    r"|url\([ \t\n\r\f]*+(?![\"'])(?:[^)\\]|\\.)*+\)?"
    r"|\\.|[^\"'(){}\[\];/<\\u-]++|.",
    re.DOTALL | re.IGNORECASE,
)
_DEEPEST = 16


class Declaration(NamedTuple):
    """A property in lower case, and its value without ``!important``.

    ``important``: that mark as written, with the blanks before it, or empty.
    """

    name: str
    value: str
    important: str


class Rule(NamedTuple):
    """A rule or at-rule: the text before its block, and the declarations in the block.

    ``inside``: the texts of the rules around it, outermost first. An at-rule without a block has no declarations.
    ``start``: where the rule begins in the sheet.
    """

    prelude: str
    declarations: tuple[Declaration, ...]
    inside: tuple[str, ...]
    start: int


class Stylesheet(NamedTuple):
    """The rules of a sheet, in the order in which they end, and whether it has comments."""

    rules: tuple[Rule, ...]
    comments: bool


def read_declarations(style: str) -> tuple[tuple[Declaration, ...], bool]:
    """Return the declarations of a ``style`` attribute in order, repeated ones as well, and whether it has comments."""
    reader = _Reader()
    reader.open("", 0)
    reader.read(style)
    # The first one that nothing is around is the attribute's own; a stray brace may have ended it.
    own = next(rule for rule in reader.close_all() if not rule.inside)
    return own.declarations, reader.comments


def read_stylesheet(css: str) -> Stylesheet:
    """Return the rules of a style sheet; rules that are not closed end with it, as in browsers."""
    reader = _Reader()
    reader.read(css)
    return Stylesheet(tuple(reader.close_all()), reader.comments)


class _Block(NamedTuple):
    prelude: str
    declarations: list[Declaration]
    start: int


class _Reader:
    """Collects rules from pieces: the blocks that are open, and the text since the last block or semicolon."""

    def __init__(self) -> None:
        self.comments = False
        self._rules: list[Rule] = []
        self._blocks: list[_Block] = []
        self._text: list[str] = []
        self._start: int | None = None
        self._brackets = 0

    def open(self, prelude: str, start: int) -> None:
        self._blocks.append(_Block(prelude, [], start))

    def read(self, css: str) -> None:
        for match in _PIECE.finditer(css):
            piece = match[0]
            if match[1]:
                self.comments = self.comments or piece.startswith("/*")
                self._text.append(" ")
            elif piece in ("(", "["):
                self._brackets += 1
                self._text.append(piece)
            elif piece in (")", "]"):
                self._brackets = max(self._brackets - 1, 0)
                self._text.append(piece)
            elif piece == "{":
                start = self._start
                self.open(self._take(), match.start() if start is None else start)
            elif piece == "}":
                self._end_statement()
                self._close()
            elif piece == ";" and not self._brackets:
                self._end_statement()
            else:
                if self._start is None and not piece.isspace():
                    self._start = match.start() + len(piece) - len(piece.lstrip())
                self._text.append(piece)

    def close_all(self) -> Iterator[Rule]:
        self._end_statement()
        while self._blocks:
            self._close()
        yield from self._rules

    def _take(self) -> str:
        text = "".join(self._text).strip()
        self._text.clear()
        self._start = None
        self._brackets = 0
        return text

    def _end_statement(self) -> None:
        start = self._start
        text = self._take()
        if text.startswith("@"):
            self._rules.append(Rule(text, (), self._inside(), start or 0))
        elif self._blocks and (declaration := _declaration(text)) is not None:
            self._blocks[-1].declarations.append(declaration)

    def _close(self) -> None:
        if self._blocks:
            block = self._blocks.pop()
            self._rules.append(Rule(block.prelude, tuple(block.declarations), self._inside(), block.start))

    def _inside(self) -> tuple[str, ...]:
        # A bound, because the time for hostile sheets would be quadratic otherwise.
        return tuple(block.prelude for block in self._blocks[:_DEEPEST])


def _declaration(text: str) -> Declaration | None:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name or not value:
        return None
    important = ""
    before, mark, flag = value.rpartition("!")
    if mark and flag.strip().lower() == "important":
        important = value[len(before.rstrip()) :]
        value = before.rstrip()
    return Declaration(name if name.startswith("--") else name.lower(), value, important)
