"""Handle text from outside: control characters, values shown in errors, and suggestions for misspelt names."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "CONTROLS",
    "FoundUrl",
    "control_character",
    "counted",
    "cut",
    "error_origin",
    "find_urls",
    "function_name",
    "one_line",
    "shown",
    "suggestion",
    "without_addresses",
    "without_quotes",
]

CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
"""Inside the brackets of a pattern: C0 and C1 controls, the Unicode line separators, and lone surrogates.

The first could end a line of SMTP, of a header or of a log; a surrogate cannot be encoded.
"""

_CONTROL = re.compile(f"[{CONTROLS}]")
_CONTROL_RUN = re.compile(f"[{CONTROLS}]+")
_NAMES = {"\r": "CR", "\n": "LF", "\x00": "NUL", "\t": "tab"}

_QUOTED = re.compile(r"(?:bytearray\()?b?(['\"`]).*\1\)?", re.DOTALL)

# The local part, or a quoted one, before the domain or address literal. An apostrophe is in it, or quotes the address.
_LOCAL_PART = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|[^\s<>()\[\]:;,"'@][^\s<>()\[\]:;,"@]*)@(?=[\w\[])""")

_URL = re.compile(r"https?://[^\s<>\"]+")
# Characters after a URL in text that belong to the sentence, not to the URL.
_PUNCTUATION = ".,;:!?'*_"
_BRACKETS = {")": "(", "]": "["}

_SHOWN = 80

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxstring = _repr.maxother = _repr.maxlong = _SHOWN


class FoundUrl(NamedTuple):
    """A URL in a text; ``start`` and ``end`` are indices, the end that of the punctuation after the URL."""

    start: int
    end: int
    url: str


def control_character(value: str) -> str | None:
    """Name the first control character of ``value`` (see :data:`CONTROLS`); None without one."""
    if value.isprintable():
        return None
    match = _CONTROL.search(value)
    if match is None:
        return None
    character = match.group()
    return _NAMES.get(character) or f"the character U+{ord(character):04X}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends with ``s``: "1 attempt", "2 attempts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(text: str) -> str:
    """Replace each run of control characters by a space, and strip the ends."""
    return _CONTROL_RUN.sub(" ", text).strip()


def cut(text: str, length: int = _SHOWN) -> str:
    """Return ``text``, or its first ``length`` characters and ``...`` if it is longer."""
    return text if len(text) <= length else f"{text[:length]}..."


def shown(value: object, *, whole: int = _SHOWN) -> str:
    """Return the ``repr`` of a caller's value for an error text, short whatever the value is.

    A str of up to ``whole`` characters is shown whole, of a longer one only the first 80. Give a larger ``whole`` for
    paths, which are long and no use without their end.
    """
    if not isinstance(value, str | bytes):
        try:
            return cut(_repr.repr(value))
        except Exception:  # noqa: BLE001 - whatever a caller's object raises, the error must name the culprit
            return f"<{cut(type(value).__name__)}>"
    text = repr(value if len(value) <= whole else value[:_SHOWN])
    longest = whole + _SHOWN  # escapes can make ten characters of one
    return text if len(value) <= whole and len(text) <= longest else f"{text[:longest]}..."


def without_addresses(text: str, *, message_id: str | None = None) -> str:
    """Return ``text`` with each address cut to its domain: ``...@example.com``.

    ``message_id`` stays whole: a Message-ID has the form of an address.
    """
    if message_id:
        return message_id.join(map(without_addresses, text.split(message_id)))
    return _LOCAL_PART.sub("...@", text) if "@" in text else text


def without_quotes(text: str) -> str:
    """Return the text of another library's error without the values that it quotes, since they may be content.

    Everything from the first quotation mark to the last of its kind becomes ``...``.
    """
    return _QUOTED.sub("...", text)


def suggestion(
    name: object,
    known: Iterable[str],
    *,
    aliases: Mapping[str, str] | None = None,
    otherwise: str = "",
    cutoff: float = 0.6,
) -> str:
    """Return ``; did you mean 'host'?`` for the one of ``known`` that is nearest to ``name``.

    ``aliases`` maps names from elsewhere, in lower case, to known ones. ``otherwise`` is said where nothing is near.
    ``cutoff`` is how similar near names are at least, from 0 to 1 (difflib's ratio).
    """
    wanted = str(name)[:_SHOWN].lower()
    by_lower = {each.lower(): each for each in known}
    near = (aliases or {}).get(wanted)
    if near is None:
        near = next((by_lower[each] for each in difflib.get_close_matches(wanted, by_lower, n=1, cutoff=cutoff)), None)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; {otherwise}" if otherwise else ""


def function_name(function: object) -> str:
    """Return the dotted name of a function, or of the class of an object that can be called."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def error_origin(error: BaseException) -> str:
    """Return an error's type, and file and line of its innermost frame; not its text, which may hold a secret.

    Of a syntax error it is the line that cannot be parsed, and of a failed import the line that imports.
    """
    where = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen importlib"):
            where = f" at {file}:{trace.tb_lineno}"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        where = f" at {error.filename}:{error.lineno}"
    return f"{type(error).__name__}{where}"


def find_urls(text: str) -> Iterator[FoundUrl]:
    """Yield the http and https URLs of ``text``, without the punctuation and brackets of the sentence around them.

    The time is proportional to the length.
    """
    for match in _URL.finditer(text):
        url = match.group()
        surplus = {closing: url.count(closing) - url.count(opening) for closing, opening in _BRACKETS.items()}
        end = len(url)
        while url[end - 1] in _PUNCTUATION or surplus.get(url[end - 1], 0) > 0:
            end -= 1
            if url[end] in surplus:
                surplus[url[end]] -= 1
        yield FoundUrl(match.start(), match.end(), url[:end])
