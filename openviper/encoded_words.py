"""Decode encoded words (RFC 2047), strictly: a word is decoded as it is defined, or refused."""

import binascii
import re

__all__ = ["MalformedWord", "decode_words"]

_PIECE = re.compile("( *)([^ ]+)")
# Section 2, with the language that RFC 2231 section 5 adds.
_WORD = re.compile(r"=\?([A-Za-z0-9_-]+)(?:\*[A-Za-z0-9-]+)?\?([QqBb])\?([!->@-~]+)\?=")
_ATTEMPT = re.compile(r"=\?(?:[^?]*\?[QqBb]\?|.*\?=)")
_Q_TEXT = re.compile("(?:[^=]|=[0-9A-Fa-f]{2})+")
# Those that mail is written in. Python has further ones that are no character sets (zlib, unicode_escape, idna).
_CHARSET = re.compile(
    r"utf-8|us-ascii|iso-8859-(?:[1-9]|1[013456])|windows-125[0-8]|koi8-[ru]|iso-2022-(?:jp|kr)|euc-(?:jp|kr)"
    r"|shift_jis|gb2312|gbk|gb18030|big5",
    re.IGNORECASE,
)


class MalformedWord(ValueError):
    """An encoded word cannot be decoded; the text says why, after "a word that"."""


def decode_words(text: str) -> str:
    """Return ``text`` with its encoded words decoded; the spaces between two of them go (section 6.2).

    Raises:
        MalformedWord: something in it looks like an encoded word, and is not one.
    """
    decoded = []
    follows_word = False
    for spaces, piece in _PIECE.findall(text):
        word = _WORD.fullmatch(piece)
        if word is None and _ATTEMPT.search(piece):
            raise MalformedWord("is malformed")
        if not (follows_word and word):
            decoded.append(spaces)
        decoded.append(piece if word is None else _decode(*word.groups()))
        follows_word = word is not None
    return "".join(decoded)


def _decode(charset: str, encoding: str, text: str) -> str:
    if not _CHARSET.fullmatch(charset):
        raise MalformedWord("names a character set that mail does not use")
    try:
        raw = _from_q(text) if encoding in "Qq" else binascii.a2b_base64(text, strict_mode=True)
        return raw.decode(charset)
    except ValueError:
        raise MalformedWord("cannot be decoded") from None


def _from_q(text: str) -> bytes:
    if not _Q_TEXT.fullmatch(text):
        raise ValueError
    return binascii.a2b_qp(text, header=True)
