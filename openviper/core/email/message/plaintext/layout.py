"""Lay out plain text: paragraphs, indents, list markers, table rows and links, line by line."""

import re
from dataclasses import dataclass, field

from openviper.core.email.message.plaintext.links import address_of, same_address

__all__ = ["TextLayout"]

# Blanks that a text shows as one: what HTML collapses, and those that authors pad with. A no-break space alone stays.
_PADDING = re.compile("[ \t\n\r\f\u00a0\u2000-\u200a\u200c\u200d]{2,}|[\t\n\r\f\u2000-\u200a]")
_BLANKS = " \u00a0"
_JOINERS = "\u200c\u200d"  # part of words in some scripts, padding between blanks
_UNSEEN = re.compile("[\u00ad\u034f\u200b\ufeff]")  # soft hyphens and the padding of preview texts
_INDENTS = 12  # deeper ones are not shown, so that nesting cannot multiply the text
_SCHEME_LENGTH = len("https:///") + 1  # by how much a link's text may differ in length from its address
_NONE, _DUE, _BEFORE_WORD = range(3)  # the last one: unless the text begins with punctuation
_LINE_END = re.compile("\r\n?|\n")
_SPACER_WIDTH = 40  # pixels; narrower columns without text keep others apart
_RULE = "-" * 40


@dataclass(slots=True)
class _Table:
    for_layout: bool
    after_cell: bool = False  # a separator was due in the row around it
    used: bool = False  # it has text, so the tables around it are there for the layout
    headed: bool = False  # it has header cells, so each empty cell keeps its place
    opened: bool = False  # the current row has a cell
    written: bool = False  # the current row has text
    broken: bool = False  # the current row takes several lines
    spacer: bool = False  # the current cell keeps no place if it stays empty
    follows: bool = False  # the row before is one line of several cells, which no paragraph in this one parts from it
    empty: int = 0  # cells without text since the last one with text
    leading: int = 0  # those before the first one with text, until their places are written
    start: int = 0  # the piece of the line that the row's text begins with
    # Where the separators stand in the line, and the line ends that were due there.
    joints: list[tuple[int, int]] = field(default_factory=list)

    def end_row(self) -> None:
        if self.opened:
            self.follows = bool(self.joints)
        self.opened = self.written = self.broken = self.spacer = False
        self.empty = self.leading = self.start = 0
        self.joints.clear()


@dataclass(slots=True)
class TextLayout:
    """Collect text in document order; :meth:`text` gives the result."""

    _lines: list[str] = field(default_factory=list)  # those that are complete
    _line: list[str] = field(default_factory=list)  # the pieces of the one that is being written
    _breaks: int = 0  # line ends due before the next text: 2 leave an empty line
    _space: int = _NONE  # the blank that is due before the next text
    _cell: bool = False  # a separator of cells is due before the next text
    _pre: int = 0  # open elements in which white space stays
    _lines_kept: bool = False  # line ends of the text stay, as with "white-space: pre-line"
    _blanks_kept: bool = False  # so do blanks, as with "white-space: pre"
    _muted: bool = False  # text is not shown, as with a font size of 0; images are
    _special: bool = False  # one of these four
    _styles: list[tuple[bool, bool, bool]] = field(default_factory=list)  # outside the open elements that change them
    _base: str = ""  # what relative targets of links start from
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
        """Add running text; white space collapses as in a browser, except where it is kept."""
        if self._special:
            self._write_styled(text)
            return
        if text.isprintable() and "  " not in text:
            words = text.strip(" ")  # nothing to collapse: the usual case, and the fastest
        elif text.isascii():
            words = " ".join(text.split())  # several times faster than the pattern
        else:
            text = _UNSEEN.sub("", text)
            words = _PADDING.sub(_as_one_blank, text).strip(_BLANKS)
            if not words.strip(_JOINERS):
                words = ""
        if not words:
            self._space = _DUE if text else self._space
        elif words == text:
            self._add(words)
        else:
            if text[0] != words[0]:
                self._space = _DUE
            self._add(words)
            self._space = _NONE if text[-1] == words[-1] else _DUE

    def write_image(self, alternative: str) -> None:
        """Add what stands for an image; blanks keep it apart from the words on both sides."""
        if not alternative:
            return
        special, self._special = self._special, False
        self._space = self._space or _BEFORE_WORD
        self.write(alternative)
        self._space = self._space or _BEFORE_WORD
        self._special = special

    def write_link(self, url: str, text: str) -> None:
        """Add a link in a line of its own, as for an area of an image map."""
        self.begin_line()
        self.open_link(url)
        self.write_image(text)
        self.close_link()
        self.begin_line()

    def set_base(self, url: str) -> None:
        """Let relative targets of links start from ``url``; the first one counts."""
        self._base = self._base or url.strip()

    def open_style(self, white_space: str, font_size_zero: bool | None = None) -> None:
        """Begin an element with styles of its own; ``""`` and None leave things as they are around it."""
        self._styles.append((self._lines_kept, self._blanks_kept, self._muted))
        if white_space:
            self._lines_kept = white_space.startswith(("pre", "break"))
            self._blanks_kept = self._lines_kept and white_space != "pre-line"
        if font_size_zero is not None:
            self._muted = font_size_zero
        self._update_special()

    def close_style(self) -> None:
        self._lines_kept, self._blanks_kept, self._muted = self._styles.pop()
        self._update_special()

    def begin_line(self) -> None:
        """Start the next text on a new line."""
        if not self._breaks:
            self._breaks = 1
        self._space = _NONE

    def begin_paragraph(self) -> None:
        """Start the next text after an empty line."""
        self._breaks = 2
        self._space = _NONE

    def end_line(self) -> None:
        """End the line; the second call in a row leaves an empty line."""
        self._breaks = 2 if self._breaks or not self._line else 1
        self._space = _NONE

    def rule(self) -> None:
        self._cell = False
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
        self._special = True

    def close_pre(self) -> None:
        self._pre -= 1
        self._update_special()
        self.begin_paragraph()

    def open_table(self, *, for_layout: bool) -> None:
        self._begin_block(paragraph=not for_layout)
        self._tables.append(_Table(for_layout, after_cell=self._cell))
        self._cell = False

    def close_table(self) -> None:
        table = self._tables.pop() if self._tables else None
        self._cell = table is not None and table.after_cell and not table.used
        self._begin_block(paragraph=table is not None and not table.for_layout)

    def open_row(self) -> None:
        self.close_row()

    def close_row(self) -> None:
        self.begin_line()
        self._cell = False
        if self._tables:
            table = self._tables[-1]
            table.end_row()

    def open_cell(self, width: str = "") -> None:
        """Stay in the row's line while every cell before was a single line; else begin a new one.

        A cell without text keeps its place between others, unless it is narrow (``width`` as in the attribute) and
        the table has no header cells.
        """
        table = self._tables[-1] if self._tables else None
        if table is None or table.for_layout:
            self.begin_line()
            return
        if not table.opened:
            table.opened = True
        elif not table.written or self._cell:
            table.empty += table.headed or not table.spacer
        elif table.broken or not self._line:
            self.begin_line()
        else:
            if not table.joints:
                table.leading = table.empty
            table.empty = 0
            self._cell = True
        table.spacer = width.isdecimal() and int(width[:9]) <= _SPACER_WIDTH

    def open_header_cell(self) -> None:
        if self._tables:
            self._tables[-1].headed = True
        self.open_cell()

    def open_link(self, url: str) -> None:
        self._links.append((address_of(url, self._base), self._length, len(self._said)))

    def close_link(self) -> None:
        """Add the address, unless the text between was the address itself."""
        if not self._links:
            return
        address, length_before, pieces_before = self._links.pop()
        length = self._length - length_before
        if not address:
            return
        if not length:
            self._space = self._space or _BEFORE_WORD
            self._add(address)
        elif abs(length - len(address)) > _SCHEME_LENGTH or not self._says(address, pieces_before):
            # A block inside the link has asked for a new line; the address still belongs to the text before it.
            breaks = self._breaks if self._line else 0
            self._breaks = 0
            self._cell = False
            self._space = _DUE
            self._add(f"({address})")
            self._breaks = breaks
            self._space = _BEFORE_WORD
            return
        self._space = self._space or _BEFORE_WORD

    def text(self) -> str:
        """Return all text written so far, without empty lines at the end."""
        self._tables.clear()
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
        if self._cell:
            self._join_cell()
        elif self._breaks or not line:
            self._begin_text_line()
        elif self._space and (self._space == _DUE or text[0].isalnum() or text[0] == "("):
            text = f" {text}"
        self._cell = False
        self._space = _NONE
        line.append(text)
        if self._links:
            self._said.append(text)
            self._length += len(text)

    def _begin_text_line(self) -> None:
        table = self._tables[-1] if self._tables else None
        if table is not None and not table.used:
            self._use_table(table)
        if self._breaks:
            if table is not None and table.follows and not table.written:
                self._breaks = 1
            self._break()
        line = self._line
        self._last_indent = self._indent
        if self._indent:
            line.append(self._start_of_line())
        if table is not None and not table.for_layout:
            table.broken = table.written
            table.written = True
            if table.headed and table.empty and not table.broken:
                line.append("| " * table.empty)
                table.empty = 0
            table.start = len(line)

    def _use_table(self, table: _Table) -> None:
        """Take the tables around ``table`` for layout, now that it has text."""
        table.used = True
        for outer in reversed(self._tables[:-1]):
            if outer.joints:
                self._split_row(outer)
            if outer.used and outer.for_layout:
                break
            outer.used = outer.for_layout = True

    def _join_cell(self) -> None:
        table, line = self._tables[-1], self._line
        if table.leading:
            line.insert(table.start, "| " * table.leading)
        table.joints.append((len(line), self._breaks))
        line.append(f" | {'| ' * table.empty}")
        table.empty = 0
        self._breaks = 0
        if table.leading:
            table.leading = 0
            table.start += 1

    def _split_row(self, table: _Table) -> None:
        """Give each cell of the current row a line of its own, once one of them turns out to have several."""
        line, joints = self._line, [*table.joints]
        if table.start and line[table.start - 1].startswith("| "):
            line[table.start - 1] = ""
        table.joints.clear()
        table.broken = True
        begin = 0
        for position, breaks in joints:
            self._lines.append("".join(line[begin:position]).rstrip())
            if breaks > 1:
                self._lines.append(self._indent.rstrip())
            begin = position + 1
        line[:] = [self._indent, *line[begin:]]

    def _update_special(self) -> None:
        self._special = self._pre > 0 or self._lines_kept or self._muted

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
            if self._tables:
                self._end_line_of_row(self._tables[-1])
            self._lines.append("".join(self._line).rstrip())
            self._line.clear()
        self._cell = False

    def _end_line_of_row(self, table: _Table) -> None:
        if not table.used:
            self._use_table(table)
        if table.joints:
            self._split_row(table)

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

    def _write_styled(self, text: str) -> None:
        if self._muted:
            if self._links and not text.isspace():
                self._links[-1] = ("", *self._links[-1][1:])  # a link that is not shown
        elif self._pre or (self._blanks_kept and not text.isspace()):
            self._write_lines(text)
        else:
            self._special = False
            for number, line in enumerate(_LINE_END.split(text)):
                if number:
                    self.end_line()
                self.write(line)
            self._special = True

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


def _as_one_blank(match: re.Match[str]) -> str:
    run = match[0]
    return " " if run.strip(_JOINERS) else run
