"""The result of a run, as data and as text."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from support.queue_model.records import Verdict

__all__ = ["ModelReport"]

_TRACE = 25


@dataclass(slots=True)
class ModelReport:
    """``faults``: each broken invariant in a line; none: the run has passed. Times are seconds, sizes MB.

    ``memory``: of each kind of process the largest size, and by how much it grew. ``over_limit``: the most by which
    Redis used more than ``maxmemory``, as a part of it.
    """

    broker: str
    seed: int
    operations: int
    counts: Mapping[str, int]
    verdict: Verdict
    drain: float
    memory: Mapping[str, tuple[float, float]]
    over_limit: float
    log: Mapping[str, int]
    faults: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True when no invariant was broken."""
        return not self.faults

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        options = f"--broker {self.broker} --seed {self.seed} --operations {self.operations}"
        return f"python benchmarks/queue_model.py {options}"

    def __str__(self) -> str:
        found = self.verdict
        windows = ", ".join(f"{name} {number}" for name, number in sorted(found.in_windows.items())) or "none"
        memory = ", ".join(f"{name} {size:.0f} MB (+{growth:.0f})" for name, (size, growth) in self.memory.items())
        if self.broker == "redis":
            memory += f", Redis {self.over_limit:.1%} above maxmemory"
        ends = {name: getattr(found, name) for name in ("accepted", "delivered", "failed", "purged", "scheduled")}
        ends |= {"lost": len(found.lost), "given up by the broker": len(found.given_up)}
        inside = sum(found.in_windows.values())
        lines = [
            f"{self.broker}, seed {self.seed}, {self.operations} operations: {'PASS' if self.passed else 'FAIL'}",
            f"  operations  {_counted(self.counts)}",
            f"  recipients  {', '.join(f'{name} {number}' for name, number in ends.items())}",
            f"  duplicates  in windows {inside} ({windows}), outside {len(found.duplicates)}",
            f"  drain       {self.drain:.0f} s",
            f"  memory      {memory}",
            f"  log         {_counted(self.log)}",
        ]
        if not self.passed:
            lines += [f"  FAULT       {fault}" for fault in self.faults]
            lines += ["  last operations:", *(f"    {step}" for step in self.trace[-_TRACE:])]
            lines.append(f"  repeat with: {self.command}")
        return "\n".join(lines)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
