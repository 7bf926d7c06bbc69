"""``mailbox``: the mail that a test has captured, with assertions about it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from openviper.core.email.addresses import Address
from openviper.core.email.delivery import using_transport
from openviper.testing.capture import Capture, CaptureQueue, CaptureTransport, PendingMessage
from openviper.testing.criteria import Criteria, Criterion, check, refuse_unknown
from openviper.testing.failures import Failure, ReplyStep
from openviper.testing.message import SentMessage
from openviper.testing.report import describe_criteria, describe_mail, describe_message
from openviper.text import shown, suggestion

__all__ = ["Mailbox", "capture_mail"]


class _Links(list[str]):
    """Links of a message; an index that does not exist names the message."""

    def __init__(self, links: list[str], message: str) -> None:
        super().__init__(links)
        self._message = message

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index)
        except IndexError:
            raise IndexError(f"there is no link {index}: {self._message} has {len(self)} links") from None


# As other mail libraries name the messages of a test.
_NAMES_ELSEWHERE = dict.fromkeys(
    ("outbox", "sent", "emails", "inbox", "mails"), "; iterate over it, or see its messages"
)


class Mailbox:
    """The messages that were sent, oldest first. Supports iteration, indexing and ``len()``.

    ``held`` has the messages that transactions hold; ``failed`` has those that could not be delivered.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @property
    def messages(self) -> list[SentMessage]:
        """Return the messages sent so far, oldest first, in a new list."""
        return self._capture.sent

    @property
    def last(self) -> SentMessage:
        """Return the newest message.

        Raises:
            AssertionError: no message was sent; lists those held or failed.
        """
        __tracebackhide__ = True
        messages = self.messages
        if not messages:
            raise AssertionError(self._describe_mail({}))
        return messages[-1]

    @property
    def held(self) -> list[SentMessage]:
        """Return the messages that open transactions hold."""
        return [pending.message for pending in self._capture.held]

    @property
    def cancelled(self) -> list[tuple[SentMessage, str]]:
        """Return the messages that ``EMAIL["before_send"]`` cancelled, each with the reason."""
        return self._capture.cancelled

    @property
    def duplicates(self) -> list[tuple[SentMessage, str]]:
        """Return the messages that were not sent because an earlier send had their ``key``, each with the reason."""
        return self._capture.duplicates

    @property
    def failed(self) -> list[tuple[SentMessage, str]]:
        """Return the messages that failed for good, each with its last error's text."""
        return self._capture.failed

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            hint = _NAMES_ELSEWHERE.get(name) or suggestion(name, [each for each in dir(type(self)) if each[0] != "_"])
            raise AttributeError(f"'Mailbox' object has no attribute {shown(name)}{hint}")

    def __len__(self) -> int:
        return len(self._capture.sent)

    def __iter__(self) -> Iterator[SentMessage]:
        return iter(self._capture.sent)

    def __getitem__(self, index: int) -> SentMessage:
        return self._capture.sent[index]

    def __repr__(self) -> str:
        return f"<Mailbox {[describe_message(message) for message in self.messages]}>"

    def clear(self) -> None:
        """Forget sent and failed messages; held messages, keys and ``fail_with`` stay."""
        self._capture.clear()

    def assert_sent(self, *, count: int | None = None, **criteria: Unpack[Criteria]) -> SentMessage:
        """Return the newest message that meets all criteria (see :class:`Criteria`).

        ``count``: how many messages must meet them; None for one or more.

        Raises:
            AssertionError: no message meets them, or not ``count`` messages; lists what was sent instead.
        """
        __tracebackhide__ = True
        if count is not None and count < 1:
            raise ValueError("count: must be 1 or more; for none use assert_not_sent()")
        matching = self._matching(criteria)
        if not matching or (count is not None and len(matching) != count):
            wanted = "a message" if count is None else f"{count} messages" if count != 1 else "exactly 1 message"
            raise AssertionError(
                f"{wanted} expected with {describe_criteria(criteria)}, found {len(matching)}; "
                f"{self._describe_mail(criteria)}"
            )
        return matching[-1]

    def assert_not_sent(self, **criteria: Unpack[Criteria]) -> None:
        """Fail if a message was sent that meets all criteria; without criteria, if any message was sent.

        Raises:
            AssertionError: lists those messages.
        """
        __tracebackhide__ = True
        matching = self._matching(criteria)
        if matching:
            lines = "\n".join(f"  {describe_message(message)}" for message in matching)
            raise AssertionError(
                f"no message expected with {describe_criteria(criteria)}, found {len(matching)}:\n{lines}"
            )

    async def wait(self, *, count: int = 1, timeout: float = 5.0, **criteria: Unpack[Criteria]) -> SentMessage:
        """Wait until ``count`` or more messages meet all criteria, and return the newest of them.

        Use it for mail that other tasks, threads or a server in this process send.

        Raises:
            AssertionError: ``timeout`` seconds have passed; lists what was sent instead.
        """
        __tracebackhide__ = True
        if not await self._capture.until(lambda: len(self._matching(criteria)) >= count, timeout):
            found = len(self._matching(criteria))
            raise AssertionError(
                f"{count} expected within {timeout:g} s with {describe_criteria(criteria)}, found {found}; "
                f"{self._describe_mail(criteria)}"
            )
        return self._matching(criteria)[-1]

    async def commit_held(self, *, timeout: float = 5.0) -> list[SentMessage]:
        """Release held messages as their transaction's commit would, and return those delivered.

        Use it in tests that roll everything back. The transaction stays open, and no longer holds these messages.

        Raises:
            AssertionError: ``timeout`` seconds have passed before all were delivered or failed.
        """
        __tracebackhide__ = True
        held = self._capture.held
        for pending in held:
            await self._release(pending)
        ids = {pending.message.message_id for pending in held}
        if not await self._capture.until(lambda: not ids & {*self._capture.outstanding}, timeout):
            raise AssertionError(f"held messages were not delivered within {timeout:g} s; {self._describe_mail({})}")
        return [message for message in self.messages if message.message_id in ids]

    def links(self, n: int = -1) -> list[str]:
        """Return the links of the message at index ``n``: first those in its HTML, then those in its text, each once.

        Raises:
            AssertionError: the mailbox has no message ``n``.
        """
        __tracebackhide__ = True
        messages = self.messages
        if not -len(messages) <= n < len(messages):
            raise AssertionError(f"there is no message {n}; {self._describe_mail({})}")
        return _Links(messages[n].links(), describe_message(messages[n]))

    def fail_with(
        self, reply: str, *, at: ReplyStep = "data", to: Criterion | Address | None = None, times: int | None = None
    ) -> AbstractContextManager[None]:
        """Make attempts fail as a mail server would, from now on or inside a ``with`` block.

        The application gets the errors that ``SMTPBackend`` raises. ``at`` is the step that fails: ``connect`` (the
        greeting; without a code the connection is refused), ``auth``, ``mail`` (the sender), ``rcpt`` (recipients;
        ``to`` chooses which), ``data`` (the content), ``drop`` or ``silence`` (after the content, which leaves the
        delivery uncertain), ``broker`` (the queue). ``times``: how many attempts fail; None for all. Retries follow
        without delay.

        Raises:
            ValueError: the step does not exist, or it needs a 4xx or 5xx ``reply``.
        """
        remove = self._capture.add_failure(Failure.make(reply, at=at, to=to, times=times))
        return _call_at_exit(remove)

    def _matching(self, criteria: Criteria) -> list[SentMessage]:
        refuse_unknown(criteria)
        return [message for message in self.messages if all(verdict.met for verdict in check(message, criteria))]

    def _describe_mail(self, criteria: Criteria) -> str:
        return describe_mail(self.messages, criteria, held=self.held, failed=self.failed)

    async def _release(self, pending: PendingMessage) -> None:
        loop = pending.loop
        if loop is asyncio.get_running_loop():
            await pending.held.release()
        elif loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(pending.held.release(), loop))
        else:
            self._capture.deliver_held(pending)


@contextmanager
def capture_mail() -> Iterator[Mailbox]:
    """Capture all mail that this process sends inside the block, whatever its delivery mode.

    No connection is opened to a mail server or a broker. A broker in the setting ``TASKS``, even the stub, appears to
    answer, and queued mail arrives as a worker would send it. Everything else works as in production: settings, checks,
    templates, the delivery mode, transactions. Mail is captured from every thread and event loop, and from applications
    and mailers created earlier. In nested blocks, the innermost one captures.
    """
    with ExitStack() as stack:
        capture = Capture()
        make = partial(CaptureTransport, capture)
        stack.enter_context(using_transport(make, queue=CaptureQueue(capture)))
        stack.callback(capture.close)
        yield Mailbox(capture)


@contextmanager
def _call_at_exit(callback: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        callback()
