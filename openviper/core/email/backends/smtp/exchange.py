"""Commands that were written together, and their replies as they come."""

import asyncio
from typing import Literal

from openviper.core.email.backends.smtp.replies import Reply

__all__ = ["Exchange", "FailureKind", "WireFailure"]

FailureKind = Literal["lost", "silent", "broken"]


class WireFailure(Exception):
    """The connection ended, or had to be ended. ``replies`` are those of the exchange that had come before."""

    def __init__(self, kind: FailureKind, detail: str, replies: tuple[Reply, ...] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.replies = replies


class Exchange:
    """``waiter`` resolves when all the replies wanted are there, or one of them is 421.

    ``limit`` and ``final_limit`` are the seconds that each reply, and the last one, may take.
    """

    __slots__ = ("final_limit", "limit", "replies", "waiter", "want")

    def __init__(self, waiter: asyncio.Future[None], want: int, limit: float, final_limit: float) -> None:
        self.waiter = waiter
        self.want = want
        self.limit = limit
        self.final_limit = final_limit
        self.replies: list[Reply] = []

    @property
    def next_limit(self) -> float:
        """Seconds that the next reply may take."""
        return self.final_limit if len(self.replies) == self.want - 1 else self.limit

    async def only_reply(self) -> Reply:
        """The reply of an exchange that wants one.

        Raises:
            WireFailure: the connection ended first.
        """
        await self.waiter
        return self.replies[0]
