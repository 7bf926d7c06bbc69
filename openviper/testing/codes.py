"""Find the code that a message's reader is to type."""

import re
from collections.abc import Iterator, Sequence

__all__ = ["codes_in", "matches_of"]

# Digits in one or two groups: 493817, 493 817, 493-817, G-493817; not a part of a number, date, price or file name.
_CODE = re.compile(r"(?<![\w.,:/#+@-])(?:[A-Z]-)?(\d{4,8}|\d{3,4}[ -]\d{3,4})(?![\w/@-])(?![.,:]\d)(?! ?[€$£%])")
_URL = re.compile(r"\S+://\S+|\S+@\S+")
_NAMED = re.compile(r"\b(?:\w*code\w*|pin|otp|passcode|password|kennwort|token)\b", re.IGNORECASE)
_SEPARATORS = re.compile(r"[ -]")


def codes_in(text: str) -> list[str]:
    """Return the codes of 4 to 8 digits in ``text``, each once, without the blank or hyphen inside.

    If the text names a code (as "code" or "PIN" does), these are the ones in that line or in the next that has any
    text; else those that stand alone on a line; else all.
    """
    lines = [line for line in (_URL.sub(" ", line).strip() for line in text.splitlines()) if line]
    everywhere = (code for line in lines for code in _of_line(line))
    return next(filter(None, (list(dict.fromkeys(found)) for found in (_named(lines), _alone(lines), everywhere))), [])


def matches_of(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return each match's first group, or the match itself if the pattern has no group; each text once."""
    return list(dict.fromkeys(match[1] if pattern.groups else match[0] for match in pattern.finditer(text)))


def _named(lines: Sequence[str]) -> Iterator[str]:
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if _NAMED.search(line):
            yield from _of_line(line) or _of_line(following)


def _alone(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if (match := _CODE.fullmatch(line.strip("*_` "))) is not None:
            yield _SEPARATORS.sub("", match[1])


def _of_line(line: str) -> list[str]:
    return [_SEPARATORS.sub("", match[1]) for match in _CODE.finditer(line)]
