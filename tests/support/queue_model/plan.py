"""Draw the operations of a run from a seed. What was drawn does not depend on how the run goes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

__all__ = ["BROKERS", "FAR", "FIRST_FRESH", "Fault", "Operation", "PlannedMessage", "make_plan"]

BROKERS = ("redis", "rabbitmq", "quorum", "sqlite", "postgresql")
"""Message brokers, and the databases of the outbox."""
FIRST_FRESH = 1_000_000
"""The number of the first message that is sent after the drain."""

FAR = 3600.0  # seconds of ``send_at`` that no run reaches

Fault = int | str
"""What the mail server does instead of accepting: a reply code, "drop" (hang up), or "cut" (accept, then hang up)."""


@dataclass(frozen=True, slots=True)
class PlannedMessage:
    """A message, and how the mail server meets it.

    ``faults``: for each address, what happens at its first, second, ... RCPT; an address of ``refused`` gets 550 each
    time. ``body``: likewise after the end of the content. ``delay`` in seconds; None: not scheduled.
    """

    number: int
    faults: dict[str, tuple[Fault, ...]]
    refused: frozenset[str]
    body: tuple[Fault, ...]
    delay: float | None
    attachment: int

    @property
    def mailer(self) -> str:
        """The mailer that it is sent by: every third message goes through a queue of its own."""
        return "default" if self.number % 3 else "bulk"

    @property
    def held(self) -> bool:
        """True when it is sent in a transaction of the outbox's database: every other one that is not scheduled."""
        return self.delay is None and self.number % 2 == 1 and self.number < FIRST_FRESH

    @property
    def addresses(self) -> tuple[str, ...]:
        """The recipients."""
        return tuple(self.faults)

    def deliverable(self, address: str) -> bool:
        """True when the mail server accepts it for this address, sooner or later, without an operator's retry."""
        return address not in self.refused and 554 not in self.body

    @property
    def far(self) -> bool:
        """True when it is scheduled for a time after the run."""
        return self.delay == FAR


@dataclass(frozen=True, slots=True)
class Operation:
    """One step.

    ``span``: the steps that a trouble lasts. ``fraction``: of the failed mail that is there, or of the time that a web
    process needs for its messages. ``variant``: a kind of junk, a worker's number. ``seconds``: of a wait, the least of
    a trouble, or those by which the server's clock is moved.
    """

    name: str
    messages: tuple[PlannedMessage, ...] = ()
    span: int = 0
    fraction: float = 0.0
    variant: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        words = [self.name]
        if self.messages:
            words.append(f"{len(self.messages)} messages from {self.messages[0].number}")
        values = {name: getattr(self, name) for name in ("span", "fraction", "variant", "seconds")}
        words += [f"{name} {value:g}" for name, value in values.items() if value]
        return ", ".join(words)


_ALWAYS = {"send": 34, "schedule": 8, "wait": 5, "wait for the broker": 8}
_SOMETIMES = {
    "kill worker": 9,
    "end worker": 4,
    "kill web": 3,
    "kill broker": 4,
    "broker down": 4,
    "pause broker": 4,
    "list failed": 6,
    "retry failed": 5,
    "purge failed": 3,
    "junk": 4,
    "move clock": 4,
}
_OF_BROKER = {
    "redis": {"full memory": 5, "replica": 3, "no replicas": 3},
    "rabbitmq": {"memory alarm": 4, "disk alarm": 3, "no rights": 3},
    "sqlite": {"locked": 6},
    "postgresql": {"locked": 4, "read only": 3, "connections ended": 3},
}
_WITHOUT_SERVER = frozenset({"kill broker", "broker down", "pause broker", "move clock"})  # not of SQLite
_TROUBLES = frozenset({"broker down", "pause broker", *(name for names in _OF_BROKER.values() for name in names)})
_FURTHEST_CLOCK = 30.0
_LONGEST_TROUBLE = 5.0


def make_plan(broker: str, seed: int, operations: int) -> list[Operation]:
    """Return the operations of this seed; the first is a send.

    As in swarm testing each seed leaves some kinds out, so that the others come in longer runs without them.
    """
    draw = random.Random(f"{broker} {seed}")
    numbers = count(1)
    weights = dict(_ALWAYS)
    special = _OF_BROKER["rabbitmq" if broker == "quorum" else broker]
    weights |= {name: weight for name, weight in (_SOMETIMES | special).items() if draw.random() < 0.7}
    if broker == "sqlite":
        weights = {name: weight for name, weight in weights.items() if name not in _WITHOUT_SERVER}
    names = ["send", *draw.choices(list(weights), list(weights.values()), k=operations - 1)]
    return [_operation(name, draw, numbers) for name in names]


def _operation(name: str, draw: random.Random, numbers: Iterator[int]) -> Operation:
    span = draw.randint(1, 4) if name in _TROUBLES else 0
    messages: tuple[PlannedMessage, ...] = ()
    seconds = 0.0
    if name in ("send", "schedule"):
        scheduled = name == "schedule"
        messages = tuple(_message(next(numbers), draw, scheduled=scheduled) for _ in range(draw.randint(1, 8)))
    elif name == "wait":
        seconds = round(draw.uniform(0.2, 3.0), 1)
    elif name in _TROUBLES:
        seconds = round(draw.uniform(0.2, _LONGEST_TROUBLE), 1)
    elif name == "move clock":
        seconds = round(draw.uniform(-_FURTHEST_CLOCK, _FURTHEST_CLOCK), 1)
    fraction, variant = round(draw.random(), 2), draw.randrange(12)
    return Operation(
        name,
        messages,
        span,
        fraction if name in ("kill web", "retry failed", "purge failed") else 0.0,
        variant if name in ("junk", "kill worker", "end worker") else 0,
        seconds,
    )


def _message(number: int, draw: random.Random, *, scheduled: bool) -> PlannedMessage:
    recipients = draw.choice((1, 1, 1, 2, 3, 6))
    addresses = [f"m{number}-{place}@example.com" for place in range(recipients)]
    # Not 421: for a minute the pool would open fewer connections, so that not each thread of a worker could send.
    faults = {address: _faults(draw, (451, 450, 452, "drop")) for address in addresses}
    refused = frozenset(address for address in addresses if draw.random() < 0.06)
    body = _faults(draw, ("cut", "drop", 451, 554))
    delay = None
    if scheduled:
        delay = FAR if draw.random() < 0.3 else round(draw.uniform(1.0, 8.0), 1)
    return PlannedMessage(number, faults, refused, body, delay, draw.choice((0, 0, 0, 0, 3_000, 100_000, 200_000)))


def _faults(draw: random.Random, kinds: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Return no fault mostly, one sometimes, two seldom: each temporary one delays the end of a run."""
    number = draw.choices((0, 1, 2), (90, 9, 1))[0]
    return tuple(draw.choice(kinds) for _ in range(number))
