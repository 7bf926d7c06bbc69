"""A mail server that meets each message as planned, whatever the order in which they come."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from support.chaos import id_of
from support.queue_model.plan import Fault, PlannedMessage
from support.smtpd import ReceivedMessage, SmtpServer, _Rule

__all__ = ["Arrival", "PlannedSmtpServer"]

_ADDRESS = re.compile(r"TO:\s*<([^>]+)>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that the server accepted for one address. ``sender``: as the client greeted; ``at``: monotonic."""

    sender: str
    at: float
    message_id: str
    cut: bool


@dataclass(slots=True)
class _Script:
    number: int = 0
    refused: frozenset[str] = frozenset()
    recipients: dict[str, list[Fault]] = field(default_factory=dict)
    body: list[Fault] = field(default_factory=list)


class PlannedSmtpServer(SmtpServer):
    """``arrivals``: of each address, in order; ``attempts``: the clients that sent each message, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: dict[str, list[Arrival]] = {}
        self.attempts: dict[int, list[tuple[str, float]]] = {}
        self._scripts: dict[str, _Script] = {}
        self._current: dict[int, _Script] = {}
        self._greeted_as: dict[int, str] = {}

    def expect(self, messages: Iterable[PlannedMessage]) -> None:
        """Take in how these are to be met."""
        for message in messages:
            faults = {address: list(planned) for address, planned in message.faults.items()}
            script = _Script(message.number, message.refused, faults, list(message.body))
            self._scripts |= dict.fromkeys(message.addresses, script)

    def _met(self, connection: int, verb: str, line: str) -> list[_Rule]:
        rules = super()._met(connection, verb, line)
        fault: Fault | None = None
        if verb == "EHLO":
            self._greeted_as[connection] = line.split()[-1]
        elif verb == "RCPT" and (found := _ADDRESS.search(line)) is not None:
            address = found[1]
            script = self._current[connection] = self._scripts.get(address, _Script())
            self.attempts.setdefault(script.number, []).append((self._greeted_as[connection], self.commands[-1].at))
            planned = script.recipients.get(address, [])
            fault = 550 if address in script.refused else planned.pop(0) if planned else None
        elif verb == "body":
            planned = self._current[connection].body
            if planned and planned[0] != "cut":
                fault = planned.pop(0)
        return rules if fault is None else [*rules, _Rule(verb, fault, None)]

    def _keep(self, message: ReceivedMessage) -> None:
        super()._keep(message)
        planned = self._current[message.connection].body
        cut = bool(planned) and planned.pop(0) == "cut"
        arrival = Arrival(self._greeted_as[message.connection], message.at, id_of(message.content), cut)
        for address in message.recipients:
            self.arrivals.setdefault(address, []).append(arrival)
        if cut:
            raise ConnectionError("the connection is cut before the answer")
