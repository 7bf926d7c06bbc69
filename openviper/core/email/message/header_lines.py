"""Write header lines: folding, encoded words (RFC 2047), address lists and parameters (RFC 2231).

Values are taken as checked: no control characters. Every function returns whole lines, ended by CRLF. A text that looks
like an encoded word is encoded itself, so that it arrives as that text.
"""

import binascii
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from openviper.core.email.addresses import Address

__all__ = [
    "MAX_WORD",
    "address_header",
    "can_fold",
    "date_header",
    "media_header",
    "named_header",
    "parameter",
    "structured_header",
    "text_header",
]

_LINE = 78
# RFC 2047 section 2: an encoded word, and (with its leading space) a line that has one.
_ENCODED_WORD = 75
_ENCODED_LINE = 76
_WORD_OPENING = "=?utf-8?"
_WORD_OVERHEAD = len("=?utf-8?q??=")
# RFC 5322 section 2.1.1; what must stay in one line leaves room for a header's name.
_MAX_LINE = 998
MAX_WORD = 900
_MAX_PLAIN_NAME = 60

_PIECES = re.compile(" *[^ ]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
# The set of RFC 2047 section 5 (3), which is valid in phrases and in text alike.
_Q_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/"
_Q = ["_" if byte == 0x20 else chr(byte) if byte in _Q_PLAIN else f"={byte:02X}" for byte in range(256)]
# Printable ASCII that needs no escape in a quoted string, without '%', which some readers decode, and without spaces
# at the ends, which some cut.
_QUOTABLE = re.compile(r"[!#$&-\[\]-~](?:[ !#$&-\[\]-~]*[!#$&-\[\]-~])?")
_EXTENDED_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def text_header(name: str, value: str, *, long_words: bool = False) -> str:
    """Return a header of free text (RFC 5322 section 3.2.5).

    Folded at spaces; in encoded words when it is not ASCII, could be taken for an encoded word, would lose a space at
    its ends, or has a word that no line holds. ``long_words`` lets words be longer than a usual line, for headers that
    programs read (a URL, JSON).
    """
    plain = value.isascii() and "=?" not in value and value[:1] != " " and value[-1:] != " "
    if plain and len(name) + 2 + len(value) <= _LINE:
        return f"{name}: {value}\r\n"
    if plain:
        pieces = _PIECES.findall(value)
        if len(name) + 2 + max(map(len, pieces)) <= (_MAX_LINE if long_words else _LINE):
            pieces[0] = f" {pieces[0]}"
            return _fold(name, pieces)
    words = _encoded_words(value, _ENCODED_LINE - len(name) - 2)
    return f"{name}: " + "\r\n ".join(words) + "\r\n"


def can_fold(value: str) -> bool:
    """True when no word of ``value``, with the spaces before it, is longer than ``MAX_WORD``; ends are not spaces."""
    return max(map(len, _PIECES.findall(value))) <= MAX_WORD


def structured_header(name: str, value: str) -> str:
    """Return a header without encoded words (msg-ids, URLs), folded; ``value`` is ASCII that :func:`can_fold`."""
    return _fold(name, _PIECES.findall(f" {value}"))


def address_header(name: str, addresses: Sequence[Address]) -> str:
    """Return a header of mailboxes, folded between them and between the words of a name."""
    if len(addresses) == 1 and not addresses[0].display_name:
        return f"{name}: {addresses[0].addr_spec}\r\n"  # there is no place to fold it
    pieces: list[str] = []
    for address in addresses:
        if address.display_name:
            pieces += _phrase(address.display_name, _ENCODED_LINE - len(name) - 2 if not pieces else _ENCODED_WORD)
            pieces.append(f" <{address.addr_spec}>,")
        else:
            pieces.append(f" {address.addr_spec},")
    pieces[-1] = pieces[-1][:-1]
    return _fold(name, pieces, _ENCODED_LINE)


def named_header(name: str, phrase: str, literal: str) -> str:
    """Return a header of a phrase, which may be empty, and ``literal`` in its angle brackets, as List-Id is."""
    pieces = _phrase(phrase, _ENCODED_LINE - len(name) - 2) if phrase else ()
    return _fold(name, [*pieces, f" {literal}"], _ENCODED_LINE)


def date_header(moment: datetime) -> str:
    """Return the Date header for an aware ``moment``, with its own offset and English names (RFC 5322 section 3.3)."""
    if moment.tzinfo is not UTC:  # only there does equal mean the same hour and offset
        return _date(moment)
    return _date_in_utc(moment.toordinal(), moment.hour, moment.minute, moment.second)


@lru_cache(maxsize=16)
def _date_in_utc(day: int, hour: int, minute: int, second: int) -> str:
    date = datetime.fromordinal(day)
    return _date(date.replace(hour=hour, minute=minute, second=second, tzinfo=UTC))


def _date(moment: datetime) -> str:
    text = moment.isoformat(timespec="seconds")
    day, year, time, hours, minutes = text[8:10], text[:4], text[11:19], text[19:22], text[23:25]
    return f"Date: {_DAYS[moment.weekday()]}, {day} {_MONTHS[moment.month - 1]} {year} {time} {hours}{minutes}\r\n"


def parameter(name: str, value: str) -> list[str]:
    """Return a MIME header's parameter as pieces that each begin with a space and fit in one line.

    Quoted when it is harmless ASCII that fits; else RFC 2231: percent-encoded UTF-8, in numbered sections when long. No
    second, plain spelling is given: receivers disagree about which of two to believe.
    """
    quoted = f' {name}="{value}"'
    if len(quoted) < _LINE and _QUOTABLE.fullmatch(value) and "=?" not in value:
        return [quoted]
    encoded = _percent_encoded(value)
    whole = f" {name}*=utf-8''{''.join(encoded)}"
    if len(whole) < _LINE:
        return [whole]
    sections: list[str] = []
    section = f" {name}*0*=utf-8''"
    for piece in encoded:
        if len(section) + len(piece) >= _LINE:
            sections.append(section)
            section = f" {name}*{len(sections)}*="
        section += piece
    return [*sections, section]


def media_header(name: str, pieces: Iterable[str]) -> str:
    """Return a MIME header from its value and its parameters; see :func:`parameter`."""
    *separated, last = pieces
    return _fold(name, [*(f"{piece};" for piece in separated), last])


def _fold(name: str, pieces: Sequence[str], limit: int = _LINE) -> str:
    """Join ``pieces``, each of which begins with a space; a line break goes before that space where a line is full.

    The first piece stays beside the name: some receivers drop a header whose first line is empty.
    """
    whole = f"{name}:{''.join(pieces)}\r\n"
    if len(whole) <= limit + 2:
        return whole
    lines: list[str] = []
    line = f"{name}:"
    alone = True
    for piece in pieces:
        if not alone and len(line) + len(piece) > limit:
            lines.append(line)
            line = piece
        else:
            line += piece
        alone = False
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"


@lru_cache(maxsize=1024)
def _phrase(name: str, first_room: int) -> tuple[str, ...]:
    """Return a display name as pieces that begin with a space: atoms, one quoted string, or encoded words."""
    if name.isascii() and "=?" not in name and len(name) <= _MAX_PLAIN_NAME:
        if _ATOMS.fullmatch(name):
            return (f" {name}",)
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        if len(escaped) <= _MAX_PLAIN_NAME:
            return (f' "{escaped}"',)
    return tuple(f" {word}" for word in _encoded_words(name, first_room))


def _encoded_words(text: str, first_room: int) -> tuple[str, ...]:
    """Return ``text`` as encoded words that fit their lines and split no character, in Q or B, whichever is shorter."""
    raw = text.encode()
    quoted_length = len(raw) + 2 * len(raw.translate(None, _Q_PLAIN + b" "))
    base64_length = 4 * -(-len(raw) // 3)
    if quoted_length <= base64_length:
        return tuple(f"{_WORD_OPENING}q?{chunk}?=" for chunk in _q_chunks(text, first_room))
    return tuple(f"{_WORD_OPENING}b?{chunk}?=" for chunk in _b_chunks(text, first_room))


def _q_chunks(text: str, first_room: int) -> Iterable[str]:
    room = first_room - _WORD_OVERHEAD
    chunk: list[str] = []
    used = 0
    for character in text:
        piece = _Q[ord(character)] if character < "\x80" else "".join([_Q[byte] for byte in character.encode()])
        used += len(piece)
        if used > room:
            yield "".join(chunk)
            chunk, used, room = [], len(piece), _ENCODED_WORD - _WORD_OVERHEAD
        chunk.append(piece)
    yield "".join(chunk)


def _b_chunks(text: str, first_room: int) -> Iterable[str]:
    room = (first_room - _WORD_OVERHEAD) // 4 * 3
    chunk = bytearray()
    for character in text:
        encoded = character.encode()
        if len(chunk) + len(encoded) > room:
            yield binascii.b2a_base64(chunk, newline=False).decode("ascii")
            chunk, room = bytearray(), (_ENCODED_WORD - _WORD_OVERHEAD) // 4 * 3
        chunk += encoded
    yield binascii.b2a_base64(chunk, newline=False).decode("ascii")


def _percent_encoded(value: str) -> list[str]:
    """Return an item for each octet, so that a section can end anywhere but inside an escape."""
    return [chr(octet) if octet in _EXTENDED_PLAIN else f"%{octet:02X}" for octet in value.encode()]
