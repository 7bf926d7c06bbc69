"""Read SMTP replies from the stream, within bounds (RFC 5321 section 4.2)."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from openviper.core.email.errors import Refusal
from openviper.text import one_line, shown

__all__ = [
    "SERVER_CLOSING",
    "Reply",
    "ReplyReader",
    "concerns_size",
    "exceeds_recipient_limit",
    "names_too_many_recipients",
    "reply_text",
    "requires_login",
    "session_timed_out",
]

SERVER_CLOSING = 421  # to any command: the server closes the connection

# RFC 5321 section 4.5.3.1.5 allows 512 octets a line, but servers exceed that.
_MAX_LINE = 4096
_MAX_LINES = 128
_MAX_TEXT = 500
_MAX_CACHED_LINE = 200

_TOO_MANY_RECIPIENTS = re.compile(r"too many (?:\w+ )?(?:recipients|rcpt)", re.IGNORECASE)
_TIMED_OUT = re.compile(r"time[d -]*out", re.IGNORECASE)
_SIZE = re.compile(r"\b(?:size|large|big|too much mail data)\b", re.IGNORECASE)

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*?))?\r?", re.DOTALL)


class _InvalidReply(Exception):
    """The bytes read are not an SMTP reply, or exceed the bounds above."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply: its code, and its text as one line without control characters, of at most 500 characters.

    ``positive`` is True for 2yz.
    """

    code: int
    text: str
    positive: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive", 200 <= self.code < 300)

    @property
    def intermediate(self) -> bool:
        """True for 3yz, of which 354 is the only one that a transaction knows (RFC 5321 section 4.3.2)."""
        return 300 <= self.code < 400

    @property
    def negative(self) -> bool:
        """True for 4yz and 5yz."""
        return self.code >= 400

    def refusal(self) -> Refusal:
        """Return this reply as a recipient's refusal."""
        return Refusal(self.code, self.text)

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


class ReplyReader:
    """Incremental parser of replies.

    ``fault`` says why the stream is invalid, None while it is valid; after a fault nothing further may be fed.
    """

    __slots__ = ("_code", "_rest", "_texts", "fault")

    def __init__(self) -> None:
        self.fault: str | None = None
        self._rest = b""
        self._code = 0
        self._texts: list[bytes] = []

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that ``data`` completes; with a ``fault``, those before it."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        replies: list[Reply] = []
        try:
            for line in lines:
                reply = _single_line(line) if len(line) <= _MAX_CACHED_LINE and not self._texts else None
                if reply is None:
                    reply = self._feed_line(line)
                if reply is not None:
                    replies.append(reply)
            if len(self._rest) > _MAX_LINE:
                raise _InvalidReply("a reply line that does not end")
        except _InvalidReply as error:
            self.fault = str(error)
        return replies

    def _feed_line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line) if len(line) <= _MAX_LINE else None
        if match is None:
            raise _InvalidReply(f"not an SMTP reply: {shown(reply_text(line[:80]))}")
        code = int(match[1])
        if self._texts and code != self._code:
            raise _InvalidReply(f"a reply that begins with {self._code} and goes on with {code}")
        text = match[3] or b""
        if match[2] == b"-":
            self._code = code
            self._texts.append(text)
            if len(self._texts) >= _MAX_LINES:
                raise _InvalidReply("a reply with too many lines")
            return None
        if self._texts:
            text = b" ".join((*self._texts, text))
            self._texts.clear()
        return Reply(code, reply_text(text))


@lru_cache(maxsize=256)
def _single_line(line: bytes) -> Reply | None:
    """Return the reply that consists of ``line`` alone, None if there is none; cached, because most lines repeat."""
    match = _LINE.fullmatch(line)
    return None if match is None or match[2] == b"-" else Reply(int(match[1]), reply_text(match[3] or b""))


def reply_text(text: bytes | str) -> str:
    """Return a server's text as one line without control characters, of at most 500 characters."""
    if isinstance(text, bytes):
        text = text[: 4 * _MAX_TEXT].decode("utf-8", "replace")
    return one_line(text[:_MAX_TEXT])


def exceeds_recipient_limit(refusal: Refusal) -> bool:
    """True if ``refusal`` may mean that this transaction takes no further recipient.

    The code is 452, from older servers 552 (RFC 5321 section 4.5.3.1.10); an enhanced code about the address, the
    mailbox or the system (RFC 3463) gives these another reason. To be asked only behind an accepted recipient.
    """
    return refusal.code in (452, 552) and _subject(refusal) not in ("1", "2", "3")


def names_too_many_recipients(refusal: Refusal) -> bool:
    """True if ``refusal`` says so itself, whatever its code and step: X.5.3 (RFC 3463 section 3.6), or in words."""
    return _detail(refusal) == "5.3" or _TOO_MANY_RECIPIENTS.search(refusal.text) is not None


def requires_login(refusal: Refusal) -> bool:
    """True if ``refusal``, to a command of a transaction, asks for AUTH or STARTTLS (RFC 4954 section 6, RFC 3207)."""
    return refusal.code in (530, 534, 535, 538)


def session_timed_out(refusal: Refusal) -> bool:
    """True if ``refusal``, to MAIL, ends the session rather than refuses the sender.

    Servers say so when the client was idle for too long: with X.4.2, or 451 and words; and with 503 when they have
    closed the session for themselves.
    """
    return (
        refusal.code == 503
        or (refusal.temporary and _detail(refusal) == "4.2")
        or (refusal.code == 451 and _TIMED_OUT.search(refusal.text) is not None)
    )


def concerns_size(refusal: Refusal) -> bool:
    """True if ``refusal`` calls the message too large: 523, X.2.3, X.3.4, or 552 in words (RFC 1870, RFC 3463)."""
    if (detail := _detail(refusal)) is not None:
        return detail in ("2.3", "3.4")
    return refusal.code == 523 or (refusal.code == 552 and _SIZE.search(refusal.text) is not None)


def _detail(refusal: Refusal) -> str | None:
    """Return subject and detail of the enhanced code, such as ``5.3``; None without one."""
    enhanced = refusal.enhanced
    return None if enhanced is None else enhanced.partition(".")[2]


def _subject(refusal: Refusal) -> str | None:
    detail = _detail(refusal)
    return None if detail is None else detail.partition(".")[0]
