"""A finding of lint about a message or a template."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["LintFinding", "by_level"]


@dataclass(frozen=True, slots=True)
class LintFinding:
    """A problem, which readers will see or filters will punish, or a note, about what some will see less well.

    ``check`` names what was checked, such as ``link-relative`` or a feature of the data on mail clients. ``lines`` are
    the first lines of the HTML part that it is about, from 1; empty if it is about the whole.
    """

    level: Literal["problem", "note"]
    check: str
    title: str
    explanation: str
    lines: tuple[int, ...] = ()


def by_level(findings: list[LintFinding]) -> list[LintFinding]:
    """Return the findings with the problems first, else in their order."""
    return sorted(findings, key=lambda finding: finding.level != "problem")
