"""Lay out plain text: paragraphs, indents, list markers, table rows and links, line by line."""

import re
from dataclasses import dataclass, field

from openviper.core.email.message.plaintext.links import address_of, same_address

__all__ = ["TextLayout"]

# What HTML collapses; a no-break space is text.
_SPACES = re.compile(r"[ \t\n\r\f]+")
_UNSEEN = re.compile("[\u00ad\u034f\u200b\ufeff]")  # soft hyphens and the padding of preview texts
_INDENTS = 12  # deeper ones are not shown, so that nesting cannot multiply the text
_SCHEME_LENGTH = len("https:///") + 1  # by how much a link's text may differ in length from its address
_RULE = "-" * 40


@dataclass(slots=True)
class _Table:
    for_layout: bool
    row_line: int = -1  # the number of the line that holds the cells of the current row; none yet


@dataclass(slots=True)
class TextLayout:
    """Collect text in document order; :meth:`text` gives the result."""

    _lines: list[str] = field(default_factory=list)  # those that are complete
    _line: list[str] = field(default_factory=list)  # the pieces of the one that is being written
    _breaks: int = 0  # line ends due before the next text: 2 leave an empty line
    _space: bool = False  # a blank is due before the next text
    _cell: bool = False  # a separator of cells is due before the next text
    _pre: int = 0  # open elements in which white space stays
    _indents: list[str] = field(default_factory=list)
    _indent: str = ""  # of the next line, as far as it is shown
    _last_indent: str = ""
    _markers: dict[int, str] = field(default_factory=dict)  # by level, instead of the indent in the next line
    _lists: list[int | None] = field(default_factory=list)  # the number of each list's next item; None for bullets
    _tables: list[_Table] = field(default_factory=list)
    _links: list[tuple[str, int, int]] = field(default_factory=list)  # address; length and pieces said before it
    _said: list[str] = field(default_factory=list)  # what was written inside links, and how long it is
    _length: int = 0

    def write(self, text: str) -> None:
        """Add running text; white space collapses as in a browser, except inside ``pre``."""
        if self._pre:
            self._write_lines(text)
            return
        if text.isprintable() and "  " not in text:
            words = text.strip(" ")  # nothing to collapse: the usual case, and the fastest
        elif text.isascii():
            words = " ".join(text.split())  # several times faster than the pattern, but takes no-break spaces too
        else:
            words = _SPACES.sub(" ", text).strip(" ")
        if not words:
            self._space = self._space or bool(text)
        elif words == text:
            self._add(words)
            self._space = False
        else:
            self._space = self._space or text[0] != words[0]
            self._add(words)
            self._space = text[-1] != words[-1]

    def begin_line(self) -> None:
        """Start the next text on a new line."""
        if not self._breaks:
            self._breaks = 1
        self._space = False

    def begin_paragraph(self) -> None:
        """Start the next text after an empty line."""
        self._breaks = 2
        self._space = False

    def end_line(self) -> None:
        """End the line; the second call in a row leaves an empty line."""
        self._breaks = 2 if self._breaks or not self._line else 1
        self._space = False

    def rule(self) -> None:
        self.begin_paragraph()
        self._add(_RULE)
        self.begin_paragraph()

    def open_list(self, first: int | None = None) -> None:
        """Begin a list; ``first`` is the number of its first item, None for bullets."""
        self._begin_block(paragraph=not self._lists)
        self._lists.append(first)

    def close_list(self) -> None:
        if self._lists:
            self._lists.pop()
        self._begin_block(paragraph=not self._lists)

    def open_item(self, number: int | None) -> None:
        """Begin an item; ``number`` None continues the list's own count."""
        self.begin_line()
        marker = "- "
        if self._lists and (current := self._lists[-1]) is not None:
            current = current if number is None else number
            self._lists[-1] = current + 1
            marker = f"{current}. "
        self._indent_by(" " * len(marker), marker)

    def open_indent(self) -> None:
        self.begin_line()
        self._indent_by("  ")

    def close_indent(self) -> None:
        self.begin_line()
        self._end_indent()

    def open_quote(self) -> None:
        self.begin_paragraph()
        self._indent_by("> ")

    def close_quote(self) -> None:
        self.begin_paragraph()
        self._end_indent()

    def open_pre(self) -> None:
        self.begin_paragraph()
        self._pre += 1

    def close_pre(self) -> None:
        self._pre -= 1
        self.begin_paragraph()

    def open_table(self, *, for_layout: bool) -> None:
        if self._tables:
            self._tables[-1].for_layout = True
        self._begin_block(paragraph=not for_layout)
        self._tables.append(_Table(for_layout))

    def close_table(self) -> None:
        table = self._tables.pop() if self._tables else None
        self._begin_block(paragraph=table is not None and not table.for_layout)

    def open_row(self) -> None:
        self.begin_line()
        self._cell = False
        if self._tables:
            self._tables[-1].row_line = -1

    def open_cell(self) -> None:
        """Stay in the row's line while every cell before was a single line; else begin a new one."""
        table = self._tables[-1] if self._tables else None
        if table is None or table.for_layout:
            self.begin_line()
        elif table.row_line < 0:
            # The first cell; text that is pending goes to the line after those that a break will end.
            table.row_line = len(self._lines) + (1 if self._line and self._breaks else 0)
        elif self._breaks or len(self._lines) > table.row_line + 1:
            self.begin_line()
        elif self._line:
            self._cell = True

    def open_link(self, url: str) -> None:
        self._links.append((address_of(url), self._length, len(self._said)))

    def close_link(self) -> None:
        """Add the address, unless the text between was the address itself."""
        if not self._links:
            return
        address, length_before, pieces_before = self._links.pop()
        length = self._length - length_before
        if not address:
            return
        if not length:
            self._add(address)
        elif abs(length - len(address)) > _SCHEME_LENGTH or not self._says(address, pieces_before):
            # A block inside the link has asked for a new line; the address still belongs to the text before it.
            breaks = self._breaks if self._line else 0
            self._breaks = 0
            self._space = True
            self._add(f"({address})")
            self._breaks = breaks

    def text(self) -> str:
        """Return all text written so far, without empty lines at the end."""
        self._flush()
        lines = self._lines
        while lines and not lines[-1].strip("> "):
            lines.pop()
        return "\n".join(lines)

    def _says(self, address: str, pieces_before: int) -> bool:
        return same_address("".join(self._said[pieces_before:]), address)

    def _add(self, text: str) -> None:
        if not text.isascii():
            text = _UNSEEN.sub("", text).replace("\u00a0", " ")
        if not text:
            return
        line = self._line
        if self._breaks or not line:
            if self._breaks:
                self._break()
            self._last_indent = self._indent
            if self._indent:
                line.append(self._start_of_line())
        elif self._cell:
            text = f" | {text}"
        elif self._space:
            text = f" {text}"
        self._cell = self._space = False
        line.append(text)
        if self._links:
            self._said.append(text)
            self._length += len(text)

    def _begin_block(self, *, paragraph: bool) -> None:
        if paragraph:
            self.begin_paragraph()
        else:
            self.begin_line()

    def _break(self) -> None:
        self._flush()
        lines = self._lines
        if self._breaks > 1 and lines and lines[-1].strip("> "):
            lines.append(min(self._indent, self._last_indent, key=len).rstrip() if self._indent else "")
        self._breaks = 0

    def _flush(self) -> None:
        if self._line:
            self._lines.append("".join(self._line).rstrip())
            self._line.clear()
        self._cell = False

    def _start_of_line(self) -> str:
        if not self._markers:
            return self._indent
        start = self._indents[:_INDENTS]
        for level, marker in self._markers.items():
            if level < _INDENTS:
                start[level] = marker
        self._markers.clear()
        return "".join(start)

    def _indent_by(self, indent: str, marker: str = "") -> None:
        self._flush()
        if marker:
            self._markers[len(self._indents)] = marker
        self._indents.append(indent)
        self._indent = "".join(self._indents[:_INDENTS])

    def _end_indent(self) -> None:
        self._flush()
        if self._indents:
            self._indents.pop()
            self._indent = "".join(self._indents[:_INDENTS])
            self._markers.pop(len(self._indents), None)

    def _write_lines(self, text: str) -> None:
        first, *others = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._add(first)
        for line in others:
            if not self._line:
                if self._breaks:
                    self._break()
                self._lines.append("")
            self._flush()
            self._add(line)
