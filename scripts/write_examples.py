#!/usr/bin/env python3
"""Write the example files into the pages that show them: ``.venv/bin/python scripts/write_examples.py``.

A page names the file in a comment, and the fenced block below it gets the file's text:

    <!-- examples/fastapi/app.py -->
    ```python
    ...
    ```

So the code is on the page wherever it is opened, and still one file that tests run.
"""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"

_BLOCK = re.compile(
    r"(?P<head>^<!-- (?P<file>examples/\S+) -->\n(?P<fence>`{3,})\w*\n).*?(?P<foot>^(?P=fence)$)",
    re.MULTILINE | re.DOTALL,
)


def with_examples(page: str, folder: Path = DOCS) -> str:
    """Return the text of a page with each example as its file in ``folder`` has it.

    Raises:
        FileNotFoundError: the page names a file that does not exist.
    """

    def filled(block: re.Match[str]) -> str:
        text = (folder / block["file"]).read_text(encoding="utf-8")
        return f"{block['head']}{text.rstrip()}\n{block['foot']}"

    return _BLOCK.sub(filled, page)


def pages() -> list[Path]:
    """Return the pages that may show examples."""
    return sorted(DOCS.glob("*.md"))


if __name__ == "__main__":
    for path in pages():
        path.write_text(with_examples(path.read_text(encoding="utf-8")), encoding="utf-8")
