"""Name the right keyword for a wrong one: misspelt, or as other mail libraries spell it."""

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Any, TypeVar

from openviper.loops import mark_coroutine_function
from openviper.text import cut, shown, suggestion

__all__ = ["keyword_hint", "with_keyword_hints"]

_BY_POSITION = inspect.Parameter.POSITIONAL_OR_KEYWORD

F = TypeVar("F", bound=Callable[..., Any])

# Spellings of Django, Flask-Mail, fastapi-mail, Nodemailer and their relatives, in lower case without underscores.
_SPELLINGS = {
    "recipients": "to emailto mailto toemail toemails toaddr toaddrs toaddress toaddresses email emails recipient "
    "recipientlist receiver receivers",
    "text": "body message content plain plaintext textbody bodytext textcontent textmessage plaintextbody msg",
    "html": "htmlbody bodyhtml htmlcontent htmlmessage htmltext alternativebody",
    "subject": "title",
    "sender": "from fromemail fromaddr fromaddress mailfrom mailfromaddress",
    "reply_to": "replytoemail replytoaddress",
    "cc": "ccrecipients carboncopy",
    "bcc": "bccrecipients blindcarboncopy",
    "attachments": "attachment attach files file",
    "template": "templatename templatepath templateid",
    "context": "templatebody templatecontext templatedata contextdata params variables data substitutions",
    "headers": "extraheaders customheaders header",
    "envelope_sender": "returnpath envelopefrom bounceto envelope",
    "fail_silently": "silent silently failsilent",
    "background": "queue usequeue asynctask usebackgroundworker",
    "send_at": "eta sendtime scheduledat schedule",
    "delay": "countdown",
    "expires_at": "expires expiry",
    "date": "datetime",
    "in_reply_to": "replyingto",
    "timeout": "deadline",
    "key": "idempotencykey dedupekey deduplicationkey deduplicationid uniquekey",
    "mailer": "using connectionname transport",
    "unsubscribe": "listunsubscribe oneclick oneclickunsubscribe",
    "recipient_id": "subscriberid userid",
    "calendar": "icalevent ical ics invitation",
}
_KEYWORDS = {spelling: keyword for keyword, spellings in _SPELLINGS.items() for spelling in spellings.split()}
# Where no keyword takes its place.
_REMEDIES = {
    "subtype": "give HTML as html=, plain text as text=",
    "contentsubtype": "give HTML as html=, plain text as text=",
    "alternatives": "give text= and html= together",
    "alts": "give text= and html= together",
    "fromname": "give sender=(name, address)",
    "sendername": "give sender=(name, address)",
    "toname": "give recipients=[(name, address)]",
    "messageid": 'give headers={"Message-ID": ...}',
    "priority": 'give headers={"X-Priority": ...}',
    "charset": "leave it out: text may be in any language",
    "encoding": "leave it out: text may be in any language",
    "connection": 'set EMAIL["backend"]',
    "authuser": 'set EMAIL["username"]',
    "authpassword": 'set EMAIL["password"]',
}


def with_keyword_hints(
    function: F, name: str | None = None, *, check_first: Callable[[object], object] | None = None
) -> F:
    """Let the TypeError for an unknown keyword, or too many values, name the remedy.

    A call that is right only passes through. The error is raised by the call, as without this, not by its ``await``.
    ``name`` is that of what is called; None: the function's. ``check_first`` is called with the first value that is
    given by position, and raises if it is another argument's.
    """
    called = name or function.__name__

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if check_first is not None and args:
            check_first(args[0])
        try:
            return function(*args, **kwargs)
        except TypeError:
            parameters = inspect.signature(function).parameters
            unknown = [each for each in kwargs if each not in parameters]
            taken = [each for each, parameter in parameters.items() if parameter.kind is _BY_POSITION]
            if not unknown and len(args) <= len(taken):
                raise  # the function's own, or about something else
        if not unknown:
            by_name = f"those after {taken[-1]}" if taken else "them"
            raise TypeError(
                f"{called}() takes at most {len(taken)} values by position, and was given {len(args)}; give {by_name} "
                "by name"
            )
        values = [each for each in unknown if "template" in kwargs and not _is_known(each, parameters)]
        if values:
            raise TypeError(
                f"{called}() got an unexpected keyword argument {cut(shown(values[0]), 60)}; a template's values are "
                "given as context={...}"
            )
        raise TypeError(_complaint(called, unknown, [each for each in parameters if each != "self"]))

    if inspect.iscoroutinefunction(function):
        mark_coroutine_function(call)
    return call  # type: ignore[return-value]


def keyword_hint(unknown: str, keywords: Collection[str]) -> str:
    """Return ``; did you mean recipients=?``, or another remedy, for a keyword that is not among ``keywords``."""
    plain = _plain(unknown)
    same = next((keyword for keyword in keywords if _plain(keyword) == plain), None)
    keyword = same or _KEYWORDS.get(plain)
    if keyword in keywords:
        return f"; did you mean {keyword}=?"
    if plain in _REMEDIES:
        return f"; {_REMEDIES[plain]}"
    near = suggestion(unknown, keywords)
    return near.replace("'", "").replace("?", "=?") if near else f"; there are {cut(', '.join(keywords), 250)}"


def _is_known(unknown: str, keywords: Collection[str]) -> bool:
    plain = _plain(unknown)
    return plain in _KEYWORDS or plain in _REMEDIES or bool(suggestion(unknown, keywords))


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _complaint(called: str, unknown: Iterable[str], keywords: Collection[str]) -> str:
    first, *others = [f"{cut(shown(each), 60)}{keyword_hint(each, keywords)}" for each in unknown]
    return cut(f"{called}() got an unexpected keyword argument {'; and '.join([first, *others])}", 1000)
