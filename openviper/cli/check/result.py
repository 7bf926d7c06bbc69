"""What was looked at, what was found, and what to do about it."""

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["CheckResult", "Status"]


class Status(StrEnum):
    """How much a result matters; only FAILED makes the whole check fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``check`` names what was looked at; ``remedy`` is empty where there is nothing to do."""

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

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {name: str(value) for name, value in asdict(self).items()}
