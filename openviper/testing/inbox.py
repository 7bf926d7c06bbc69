"""``Inbox`` and ``AsyncInbox``: the mail of a running server, for end-to-end tests with Playwright or httpx."""

import asyncio
import secrets
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from openviper.network import is_loopback, mail_key
from openviper.testing.inbox_message import InboxMessage
from openviper.text import counted, cut, one_line, shown

__all__ = ["AsyncInbox", "Inbox", "InboxMessage"]

T = TypeVar("T")

_API = "/_mail/api/messages"
_TIMEOUT = 10.0
_SLOW = 60.0  # seconds for an answer, however slow the machine
_LONGEST_WAIT = 2.0  # seconds of one request that waits; then the list is asked again, since a state may have changed
_PAUSE = 0.1  # seconds between two looks at a message that is not on its way yet
_SHOWN_MESSAGES = 5

# In all other states nobody has the message: it may wait for a commit or the response, be cancelled or refused.
_ARRIVED = frozenset({"queued", "delivered"})
_PENDING = frozenset({"held", "deferred", "sending", "redirected", "retrying"})


@dataclass(frozen=True, slots=True)
class _Request:
    """A GET request below the base URL; ``timeout`` in seconds."""

    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    timeout: float = _SLOW


# A request yields its response, a number pauses for that many seconds.
_Steps = Generator[_Request | float, Any, T]


class _Reader:
    """Decides what to request and what the answers mean, for the sync inbox and for the async one."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        # Key and recipient: ``wait`` returns a message once for each of its recipients.
        self._seen: set[tuple[str, str]] = set()

    def skip(self) -> _Steps[None]:
        answer = yield from self._list({})
        self._seen.update((each["key"], mail_key(one)) for each in answer["messages"] for one in each["recipients"])

    def messages(self, to: str, subject: str | None) -> _Steps[list[InboxMessage]]:
        wanted = _Wanted(to, subject)
        answer = yield from self._list({"to": wanted.key})
        found = []
        for summary in reversed(answer["messages"]):
            if wanted.matches(summary) and wanted.has_arrived(summary):
                message = yield from self._load(summary["key"])
                found.extend([] if message is None else [message])
        return found

    def wait(self, to: str, subject: str | None, timeout: float) -> _Steps[InboxMessage]:
        __tracebackhide__ = True
        wanted = _Wanted(to, subject)
        deadline = time.monotonic() + timeout
        while True:
            answer = yield from self._list({"to": wanted.key})
            new = [each for each in answer["messages"] if wanted.matches(each) and not self._is_seen(each, wanted)]
            arrived = [each["key"] for each in new if wanted.has_arrived(each)]
            if arrived:
                self._seen.add((arrived[-1], wanted.key))  # before the next request: others wait in this inbox, too
                message = yield from self._load(arrived[-1])
                if message is not None:
                    return message
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                everything = yield from self._list({})
                raise AssertionError(self._describe_missing(wanted, timeout, everything["messages"]))
            if any(each["state"] in _PENDING for each in new):
                yield min(left, _PAUSE)
            else:
                yield from self._wait_for_another(wanted.key, answer["cursor"], min(left, _LONGEST_WAIT))

    def _wait_for_another(self, to: str, cursor: str, seconds: float) -> _Steps[None]:
        begun = time.monotonic()
        parameters = {"to": to, "after": cursor, "timeout": f"{seconds:.3f}"}
        response = yield _Request(f"{_API}/wait", parameters, seconds + _SLOW)
        if response.status_code not in (200, 404, 503):
            self._refuse(response)
        # Answered early without a message: as many requests as allowed wait already, or the server shuts down.
        if response.status_code != 200 and time.monotonic() - begun < seconds:
            yield min(seconds, _PAUSE)

    def _is_seen(self, summary: Mapping[str, Any], wanted: "_Wanted") -> bool:
        return (summary["key"], wanted.key) in self._seen

    def _list(self, parameters: Mapping[str, str]) -> _Steps[dict[str, Any]]:
        response = yield _Request(_API, parameters)
        return self._read(response)

    def _load(self, key: str) -> _Steps[InboxMessage | None]:
        """Return the message; None if it has been deleted meanwhile."""
        response = yield _Request(f"{_API}/{key}")
        if response.status_code == 404:
            return None
        return InboxMessage.from_json(self._read(response), f"{self._base_url}/_mail/{key}")

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != 200 or "json" not in response.headers.get("content-type", ""):
            self._refuse(response)
        values: dict[str, Any] = response.json()
        return values

    def _refuse(self, response: httpx.Response) -> None:
        reason = f"answers {response.status_code}"
        if response.status_code == 403:
            reason += f": {cut(one_line(response.text), 200)}"
        elif response.status_code in (200, 404) or response.is_redirect:
            reason += (
                '; is it the application\'s base URL, and is the page on? It needs DEBUG or EMAIL["inbox"] = "always"'
            )
        raise ConnectionError(f"the inbox page of {shown(self._base_url)} {reason}")

    def _describe_missing(self, wanted: "_Wanted", timeout: float, messages: Iterable[Mapping[str, Any]]) -> str:
        here = [each for each in messages if wanted.is_recipient(each)]
        others = [each for each in messages if not wanted.is_recipient(each)]
        subject = "" if wanted.subject is None else f" with {shown(wanted.subject)} in its subject"
        lines = [f"no mail to {wanted.to}{subject} arrived within {timeout:g} s"]
        lines += _listing("to this address", [self._describe(each, wanted) for each in here])
        lines += _listing(
            "to other addresses", [f"{shown(each['subject'])} to {', '.join(each['recipients'])}" for each in others]
        )
        return "\n".join(lines if here or others else [*lines, "the inbox page has no messages"])

    def _describe(self, summary: Mapping[str, Any], wanted: "_Wanted") -> str:
        state = f"{summary['state']}, refused" if wanted.is_refused(summary) else summary["state"]
        before = ", returned or skipped before" if self._is_seen(summary, wanted) else ""
        return f"{shown(summary['subject'])} ({state}{before})"


def _listing(title: str, lines: list[str]) -> list[str]:
    """Return the number of messages and the newest of them, one a line; nothing without messages."""
    if not lines:
        return []
    more = [f"  ... and {len(lines) - _SHOWN_MESSAGES} more"] if len(lines) > _SHOWN_MESSAGES else []
    return [f"{counted(len(lines), 'message')} {title}:", *(f"  {line}" for line in lines[:_SHOWN_MESSAGES]), *more]


class _Wanted:
    """The recipient, exactly, and a part of the subject.

    Raises:
        ValueError: ``to`` is not one address.
    """

    def __init__(self, to: str, subject: str | None) -> None:
        self.to = to
        self.subject = subject
        self.key = mail_key(to)
        local_part, _, domain = self.key.rpartition("@")
        if not (local_part and domain) or any(character in self.key for character in '<>," '):
            raise ValueError(f"to: must be one whole address such as ana@example.com, not {shown(to)}")

    def is_recipient(self, summary: Mapping[str, Any]) -> bool:
        return self.key in map(mail_key, summary["recipients"])

    def matches(self, summary: Mapping[str, Any]) -> bool:
        part = self.subject
        return self.is_recipient(summary) and (part is None or part.casefold() in summary["subject"].casefold())

    def is_refused(self, summary: Mapping[str, Any]) -> bool:
        return self.key in map(mail_key, summary["refused"])

    def has_arrived(self, summary: Mapping[str, Any]) -> bool:
        return summary["state"] in _ARRIVED and not self.is_refused(summary)


class _Settings:
    """The base URL and the default time-out of an inbox.

    Raises:
        ValueError: the base URL does not begin with ``http://`` or ``https://``, or ``timeout`` is negative.
    """

    def __init__(self, base_url: str, timeout: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: must be a URL such as http://127.0.0.1:8000, not {shown(base_url)}")
        self.base_url = base_url.rstrip("/").removesuffix("/_mail")
        self.timeout = _checked_timeout(timeout)
        # A proxy of the environment cannot reach this machine.
        self.trust_env = not is_loopback(parts.hostname)


def _checked_timeout(timeout: float) -> float:
    if timeout < 0:
        raise ValueError(f"timeout: must be 0 seconds or more, not {shown(timeout)}")
    return timeout


def _unreachable(base_url: str, error: httpx.TransportError) -> ConnectionError:
    return ConnectionError(f"{shown(base_url)} does not answer: {type(error).__name__}; is the server running?")


def _make_address(name: str, domain: str) -> str:
    return f"{name}-{secrets.token_hex(6)}@{domain}"


class Inbox:
    """The mail that a running server sends, read through the JSON of its inbox page.

    ``base_url`` is the application's, such as ``http://127.0.0.1:8000``; ``timeout`` is how many seconds ``wait`` waits
    by default. Use it as a context manager, or call ``close()``. ``client`` is your own httpx client for the requests,
    for example one with a password; it stays open.

    Raises:
        ValueError: ``base_url`` is not an ``http`` or ``https`` URL, or ``timeout`` is negative.
    """

    def __init__(self, base_url: str, *, timeout: float = _TIMEOUT, client: httpx.Client | None = None) -> None:
        self._settings = _Settings(base_url, timeout)
        self._reader = _Reader(self._settings.base_url)
        self._client = client or httpx.Client(trust_env=self._settings.trust_env)
        self._closes = client is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        if self._closes:
            self._client.close()

    def new_address(self, name: str = "test", *, domain: str = "example.com") -> str:
        """Return an address that nobody has used, such as ``ana-4f0c2b9d1e77@example.com``.

        With a new address for each test, tests can run in parallel against one server.
        """
        return _make_address(name, domain)

    def wait(self, *, to: str, subject: str | None = None, timeout: float | None = None) -> InboxMessage:
        """Wait for mail to an address; return the oldest message that no earlier call for it has returned.

        ``to`` is the whole address, compared with the envelope's recipients, so Bcc counts; ``subject`` is part of the
        subject, ignoring case. A message counts once it is delivered or queued, never before its transaction or
        response has ended. ``timeout`` in seconds; None means the inbox's.

        Raises:
            AssertionError: no such message arrived within ``timeout``; lists the subjects that did arrive, with their
                states.
            ConnectionError: the server does not answer, or has no inbox page.
            ValueError: ``to`` is not one address.
        """
        __tracebackhide__ = True
        seconds = self._settings.timeout if timeout is None else _checked_timeout(timeout)
        return self._run(self._reader.wait(to, subject, seconds))

    def messages(self, *, to: str, subject: str | None = None) -> list[InboxMessage]:
        """Return the messages to an address that have arrived, oldest first, including those returned before.

        Raises:
            ConnectionError: the server does not answer, or has no inbox page.
            ValueError: ``to`` is not one address.
        """
        __tracebackhide__ = True
        return self._run(self._reader.messages(to, subject))

    def skip(self) -> None:
        """Make ``wait`` ignore all messages that are in the inbox now, such as those of an earlier run.

        Raises:
            ConnectionError: the server does not answer, or has no inbox page.
        """
        __tracebackhide__ = True
        self._run(self._reader.skip())

    def _run(self, steps: _Steps[T]) -> T:
        __tracebackhide__ = True
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, _Request):
                    answer = self._get(step)
                else:
                    time.sleep(step)
        except StopIteration as end:
            result: T = end.value
            return result

    def _get(self, request: _Request) -> httpx.Response:
        __tracebackhide__ = True
        try:
            return self._client.get(
                self._settings.base_url + request.path, params=dict(request.parameters), timeout=request.timeout
            )
        except httpx.TransportError as error:
            raise _unreachable(self._settings.base_url, error) from error


class AsyncInbox:
    """The same as :class:`Inbox` for async code: ``await`` its methods, and ``async with`` or ``aclose()`` closes it.

    ``client`` may also be one with ``httpx.ASGITransport``, for an application in the test's own process.

    Raises:
        ValueError: ``base_url`` is not an ``http`` or ``https`` URL, or ``timeout`` is negative.
    """

    def __init__(self, base_url: str, *, timeout: float = _TIMEOUT, client: httpx.AsyncClient | None = None) -> None:
        self._settings = _Settings(base_url, timeout)
        self._reader = _Reader(self._settings.base_url)
        self._client = client or httpx.AsyncClient(trust_env=self._settings.trust_env)
        self._closes = client is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to the server."""
        if self._closes:
            await self._client.aclose()

    def new_address(self, name: str = "test", *, domain: str = "example.com") -> str:
        """Return an address that nobody has used, such as ``ana-4f0c2b9d1e77@example.com``."""
        return _make_address(name, domain)

    async def wait(self, *, to: str, subject: str | None = None, timeout: float | None = None) -> InboxMessage:
        """Wait for mail to an address; return the oldest message that no earlier call for it has returned.

        See :meth:`Inbox.wait`.

        Raises:
            AssertionError: no such message arrived within ``timeout``; lists the subjects that did arrive, with their
                states.
            ConnectionError: the server does not answer, or has no inbox page.
            ValueError: ``to`` is not one address.
        """
        __tracebackhide__ = True
        seconds = self._settings.timeout if timeout is None else _checked_timeout(timeout)
        return await self._run(self._reader.wait(to, subject, seconds))

    async def messages(self, *, to: str, subject: str | None = None) -> list[InboxMessage]:
        """Return the messages to an address that have arrived, oldest first, including those returned before.

        Raises:
            ConnectionError: the server does not answer, or has no inbox page.
            ValueError: ``to`` is not one address.
        """
        __tracebackhide__ = True
        return await self._run(self._reader.messages(to, subject))

    async def skip(self) -> None:
        """Make ``wait`` ignore all messages that are in the inbox now, such as those of an earlier run.

        Raises:
            ConnectionError: the server does not answer, or has no inbox page.
        """
        __tracebackhide__ = True
        await self._run(self._reader.skip())

    async def _run(self, steps: _Steps[T]) -> T:
        __tracebackhide__ = True
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, _Request):
                    answer = await self._get(step)
                else:
                    await asyncio.sleep(step)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _get(self, request: _Request) -> httpx.Response:
        __tracebackhide__ = True
        try:
            return await self._client.get(
                self._settings.base_url + request.path, params=dict(request.parameters), timeout=request.timeout
            )
        except httpx.TransportError as error:
            raise _unreachable(self._settings.base_url, error) from error
