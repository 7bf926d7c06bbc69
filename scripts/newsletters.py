#!/usr/bin/env python3
"""Compare the texts made from the newsletters of the tests with those that were approved.

Prints the differences and exits with 1 if there are any. Once they were read and found right, ``--approve NAME ...``
writes the texts of those documents, and of no others.
"""

import argparse
import difflib
import sys
from pathlib import Path

from openviper.core.email.message.plaintext import html_to_text

__all__ = ["FOLDER", "difference", "main"]

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "newsletters"


def difference(document: Path) -> str:
    """Return how the text of ``document`` differs from the approved one, as a unified diff; empty if it does not."""
    approved = document.with_suffix(".txt")
    before = approved.read_text(encoding="utf-8").splitlines() if approved.exists() else []
    after = html_to_text(document.read_text(encoding="utf-8")).splitlines()
    return "\n".join(difflib.unified_diff(before, after, approved.name, "now", lineterm=""))


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--approve", nargs="+", default=[], metavar="NAME", help="documents whose texts are written")
    names = parser.parse_args().approve
    for name in names:
        document = FOLDER / f"{name}.html"
        text = html_to_text(document.read_text(encoding="utf-8"))
        document.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    differences = [found for document in sorted(FOLDER.glob("*.html")) if (found := difference(document))]
    report = "\n\n".join(differences)
    sys.stdout.write(f"{report or 'All texts are as approved.'}\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
