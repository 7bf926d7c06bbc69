"""Which characters may stand in an address or a header at all."""

import re

__all__ = ["refused_character"]

# Controls of both sets, the Unicode line separators, and lone surrogates, which no encoding can carry.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAMES = {"\r": "CR", "\n": "LF", "\x00": "NUL", "\t": "tab"}


def refused_character(value: str) -> str | None:
    """Name the first character of ``value`` that may stand in no header and no address; None when there is none."""
    if value.isprintable():
        return None
    match = _REFUSED.search(value)
    if match is None:
        return None
    character = match.group()
    return _NAMES.get(character) or f"the character U+{ord(character):04X}"
