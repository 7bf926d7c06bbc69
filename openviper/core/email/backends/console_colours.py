"""Render a message with colours for a terminal, by rich; the text is the same as without."""

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openviper.core.email.backends.console_view import WIDTH, View, label_column

__all__ = ["render_coloured"]

_VALUES = {"Subject": "bold", "Bcc": "yellow"}


def render_coloured(view: View, stream: TextIO) -> str:
    """Render ``view`` as ``stream`` can show it: rich heeds TERM, NO_COLOR and the width of the terminal."""
    console = Console(file=stream, highlight=False, emoji=False, markup=False, legacy_windows=False)
    with console.capture() as capture:
        rule = Text("-" * WIDTH, style="dim")
        console.print(rule, soft_wrap=True)
        for label, value, note in view.headers:
            start = (label_column(label), "cyan")
            console.print(Text.assemble(start, (value, _VALUES.get(label, "")), note), soft_wrap=True)
        console.print()
        body = Text("(no text part)", style="dim") if view.text is None else Text(view.text)
        console.print(body, soft_wrap=True)
        if view.html_size is not None:
            console.print(Text(f"\n[and as HTML, {view.html_size}]", style="dim"), soft_wrap=True)
        if view.attachments:
            console.print()
            console.print(_table(view))
        console.print(rule, soft_wrap=True)
    return capture.get()


def _table(view: View) -> Table:
    table = Table(box=None, title="Attachments", title_justify="left", title_style="cyan", header_style="dim")
    for name in ("name", "type", "size", ""):
        # Never cut a name short: its end tells the type.
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for row in view.attachments:
        table.add_row(*map(Text, row))
    return table
