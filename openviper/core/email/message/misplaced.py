"""Find arguments in each other's places: an address as subject, HTML as text, a template's name as a body."""

import re
from collections.abc import Mapping
from typing import Any

from openviper.core.email.addresses import Address

__all__ = ["ORDER", "is_address_like", "misplaced_argument", "type_hint"]

ORDER = "recipients come first: send_email(recipients, subject, text)"

_ADDRESS = re.compile(r"(?:[^<>@]*<)?[^\s<>@,;:()\[\]]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+>?")
_LONGEST_ADDRESS = 320
_FILE = re.compile(r"[\w./-]+\.(?:txt|html?|md|jinja2?|j2)")
_LONGEST_FILE = 200
_FILE_ENDS = "tlmda2"  # the last letters of those suffixes
_HTML = re.compile(r"\s*<(?:!doctype|html|head|body|div|p|table|h[1-6]|br|span|a)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_VARIABLE = re.compile(r"\{\{\s*[A-Za-z_][\w.]*\s*\}\}")


def is_address_like(value: object) -> bool:
    """Return True for a text that is nothing but an address with or without a name, and for an :class:`Address`."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_ADDRESS and "@" in value and _ADDRESS.fullmatch(value) is not None
    return isinstance(value, Address)


def misplaced_argument(subject: object, text: object, html: object, template: object = None) -> str | None:
    """Return what is probably wrong with a message's subject and bodies as they are given; None: nothing.

    Such a message can be sent, and may come from a user's own words: it is for a warning, not for an error. With a
    ``template`` only the subject is looked at.
    """
    # Every send comes here: one character is found in a text many times faster than two, or than an expression.
    if isinstance(subject, str) and ("@" in subject or "{" in subject) and (doubt := _doubt_of_subject(subject)):
        return doubt
    if template is not None:
        return None
    if isinstance(text, str):
        if ("{" in text or text[-1:] in _FILE_ENDS) and (doubt := _doubt_of_body("text", text)):
            return doubt
        if html is None and "<" in text and _HTML.match(text):
            return "its text is HTML; give it as html="
    if isinstance(html, str) and html:
        if ("{" in html or html[-1:] in _FILE_ENDS) and (doubt := _doubt_of_body("html", html)):
            return doubt
        if "<" not in html and "&" not in html:
            return "its html has no tag; plain text is given as text="
    return None


def _doubt_of_subject(subject: str) -> str | None:
    if "@" in subject and is_address_like(subject):
        return "its subject is an address; the order is send_email(recipients, subject, text), the sender is sender="
    if "{{" in subject and _VARIABLE.search(subject):
        return "its subject has a variable in {{ }}, which only a template's block 'subject' fills in"
    return None


def _doubt_of_body(name: str, body: str) -> str | None:
    if len(body) < _LONGEST_FILE and _FILE.fullmatch(body):
        return f"its {name} is the name of a file; a template is given as template="
    if "{{" in body and _VARIABLE.search(body):
        return f"its {name} has a variable in {{{{ }}}}, which only a template fills in: template= and context="
    return None


def type_hint(field: str, value: object) -> str:
    """Return, for an error about a value of another type, where it belongs; "" if that is not known."""
    if field == "subject" and (isinstance(value, list | tuple | set) or is_address_like(value)):
        return f"; {ORDER}"
    if field in ("text", "html") and isinstance(value, Mapping):
        return "; a template's values are given as context="
    if field in ("text", "html") and isinstance(value, list | tuple) and any(map(_is_address, value)):
        return f"; {ORDER}, the sender is sender="
    if isinstance(value, bytes | bytearray):
        return "; decode it"
    return ""


def _is_address(value: Any) -> bool:
    return is_address_like(value)
