"""Let a backend ask, before each transaction, whether mail may be sent."""

from typing import Protocol

__all__ = ["Brake"]


class Brake(Protocol):
    """Says whether sending is paused. A backend whose messages wait, for a connection say, asks after the wait."""

    on: bool
    """True while any mail is paused; ``check`` need not be called otherwise."""

    def check(self, mailer: str) -> None:
        """Return if mail of ``mailer`` may be sent.

        Raises:
            SendingPaused: it may not.
        """
