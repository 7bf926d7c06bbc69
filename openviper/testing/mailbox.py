"""``mailbox``: the mail of a test, and what may be asked about it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Unpack

from openviper.core.email.delivery import using_transport
from openviper.testing.capture import Capture, CaptureQueue, CaptureTransport, Waiting
from openviper.testing.criteria import Criteria, Criterion, check, refuse_unknown
from openviper.testing.failures import Failure, ReplyStep
from openviper.testing.message import SentMessage
from openviper.testing.report import asked_for, instead, one_line

__all__ = ["Mailbox", "capture_mail"]


class Mailbox:
    """The messages that have left, in the order sent. Iterable, indexable, and it has a length.

    What a transaction holds is in ``held``, what could not be delivered in ``failed``.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @property
    def messages(self) -> list[SentMessage]:
        """What was sent so far, oldest first; a new list each time."""
        return self._capture.sent

    @property
    def last(self) -> SentMessage:
        """The newest message.

        Raises:
            AssertionError: nothing was sent; says what was held or failed.
        """
        __tracebackhide__ = True
        messages = self.messages
        if not messages:
            raise AssertionError(self._instead({}))
        return messages[-1]

    @property
    def held(self) -> list[SentMessage]:
        """What open transactions hold back."""
        return [waiting.message for waiting in self._capture.held]

    @property
    def failed(self) -> list[tuple[SentMessage, str]]:
        """Messages of which no further attempt is made, each with the last error's text."""
        return self._capture.failed

    def __len__(self) -> int:
        return len(self._capture.sent)

    def __iter__(self) -> Iterator[SentMessage]:
        return iter(self._capture.sent)

    def __getitem__(self, index: int) -> SentMessage:
        return self._capture.sent[index]

    def __repr__(self) -> str:
        return f"<Mailbox {[one_line(message) for message in self.messages]}>"

    def clear(self) -> None:
        """Forget what was sent and what failed; held messages and ``fail_with`` stay."""
        self._capture.clear()

    def assert_sent(self, *, count: int | None = None, **criteria: Unpack[Criteria]) -> SentMessage:
        """The newest message that meets all criteria (see :class:`Criteria`).

        ``count``: how many have to meet them; None is one or more.

        Raises:
            AssertionError: there is none, or not so many; says what was sent instead.
        """
        __tracebackhide__ = True
        if count is not None and count < 1:
            raise ValueError("count: must be 1 or more; assert_not_sent() asks for none")
        matching = self._matching(criteria)
        if not matching or (count is not None and len(matching) != count):
            wanted = "a message" if count is None else f"{count} messages" if count != 1 else "exactly 1 message"
            raise AssertionError(
                f"{wanted} expected with {asked_for(criteria)}, found {len(matching)}; {self._instead(criteria)}"
            )
        return matching[-1]

    def assert_not_sent(self, **criteria: Unpack[Criteria]) -> None:
        """Nothing that meets all criteria was sent; without criteria: nothing at all.

        Raises:
            AssertionError: lists what was.
        """
        __tracebackhide__ = True
        matching = self._matching(criteria)
        if matching:
            lines = "\n".join(f"  {one_line(message)}" for message in matching)
            raise AssertionError(f"no message expected with {asked_for(criteria)}, found {len(matching)}:\n{lines}")

    async def wait(self, *, count: int = 1, timeout: float = 5.0, **criteria: Unpack[Criteria]) -> SentMessage:
        """The newest message as soon as ``count`` or more meet all criteria, at once when they do already.

        For mail that other tasks, threads or a server in this process send.

        Raises:
            AssertionError: ``timeout`` seconds have passed; says what was sent instead.
        """
        __tracebackhide__ = True
        if not await self._capture.until(lambda: len(self._matching(criteria)) >= count, timeout):
            found = len(self._matching(criteria))
            raise AssertionError(
                f"{count} expected within {timeout:g} s with {asked_for(criteria)}, found {found}; "
                f"{self._instead(criteria)}"
            )
        return self._matching(criteria)[-1]

    async def commit_held(self, *, timeout: float = 5.0) -> list[SentMessage]:
        """Let held messages go as the commit of their transaction would; for tests that roll everything back.

        The transaction itself stays open, and does nothing more for these messages. Returns those delivered.

        Raises:
            AssertionError: ``timeout`` seconds have passed before all were delivered or failed.
        """
        __tracebackhide__ = True
        waiting = self._capture.held
        for one in waiting:
            await self._release(one)
        ids = {one.message.message_id for one in waiting}
        if not await self._capture.until(lambda: not ids & {*self._capture.outstanding}, timeout):
            raise AssertionError(f"held messages were not delivered within {timeout:g} s; {self._instead({})}")
        return [message for message in self.messages if message.message_id in ids]

    def links(self, n: int = -1) -> list[str]:
        """The links of the message at index ``n``: of its HTML, then the URLs of its text, each once.

        Raises:
            AssertionError: there is no such message.
        """
        __tracebackhide__ = True
        messages = self.messages
        if not -len(messages) <= n < len(messages):
            raise AssertionError(f"there is no message {n}; {self._instead({})}")
        return messages[n].links()

    def fail_with(
        self, reply: str, *, at: ReplyStep = "data", to: Criterion | None = None, times: int | None = None
    ) -> AbstractContextManager[None]:
        """Fail from now on as a mail server does; a with block around what follows ends it.

        The application gets what ``SMTPBackend`` raises. ``at``: ``connect`` (the greeting; without a code the
        connection is refused), ``auth``, ``mail`` (the sender), ``rcpt`` (recipients; ``to`` chooses which), ``data``
        (the content), ``drop`` or ``silence`` (after the content, so that nobody knows what became of it), ``broker``
        (the queue). ``times``: how many attempts fail; None is all of them. Further attempts follow without a pause.

        Raises:
            ValueError: there is no such step, or ``reply`` is none of 4xx or 5xx where the step needs one.
        """
        end = self._capture.add_failure(Failure.make(reply, at=at, to=to, times=times))
        return _ending(end)

    def _matching(self, criteria: Criteria) -> list[SentMessage]:
        refuse_unknown(criteria)
        return [message for message in self.messages if all(verdict.met for verdict in check(message, criteria))]

    def _instead(self, criteria: Criteria) -> str:
        return instead(self.messages, criteria, held=self.held, failed=self.failed)

    async def _release(self, waiting: Waiting) -> None:
        loop = waiting.loop
        if loop is asyncio.get_running_loop():
            await waiting.held.release()
        elif loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waiting.held.release(), loop))
        else:
            self._capture.take_alone(waiting)


@contextmanager
def capture_mail() -> Iterator[Mailbox]:
    """Keep all mail of this process that leaves in the block, whatever its delivery mode, and look at it.

    No connection is opened, neither to a mail server nor to a broker: a broker of the setting ``TASKS``, the stub as
    well, seems to answer, and what is queued arrives as a worker would send it. Everything else runs as ever: settings,
    checks, templates, the delivery mode, transactions. For any thread and event loop, also of applications and
    mailers that were made before. Inside another block the inner one gets the mail.
    """
    with ExitStack() as stack:
        capture = Capture()
        make = partial(CaptureTransport, capture)
        stack.enter_context(using_transport(make, queue=CaptureQueue(capture)))
        stack.callback(capture.close)
        yield Mailbox(capture)


@contextmanager
def _ending(end: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        end()
