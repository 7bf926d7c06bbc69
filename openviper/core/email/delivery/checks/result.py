"""Result of a check: its status, the finding, and the remedy."""

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["CheckResult", "Status"]


class Status(StrEnum):
    """A result's severity; only FAILED makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's result; ``remedy`` is empty if nothing has to be done."""

    check: str
    status: Status
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, check: str, found: str) -> "CheckResult":
        return cls(check, Status.OK, found)

    @classmethod
    def warning(cls, check: str, found: str, remedy: str) -> "CheckResult":
        return cls(check, Status.WARNING, found, remedy)

    @classmethod
    def failed(cls, check: str, found: str, remedy: str) -> "CheckResult":
        return cls(check, Status.FAILED, found, remedy)

    @classmethod
    def skipped(cls, check: str, found: str, remedy: str = "") -> "CheckResult":
        return cls(check, Status.SKIPPED, found, remedy)

    def __str__(self) -> str:
        return f"{self.status} {self.check}: {self.found}{f'; {self.remedy}' if self.remedy else ''}"

    def as_dict(self) -> dict[str, str]:
        """Return the fields for JSON."""
        return {name: str(value) for name, value in asdict(self).items()}
