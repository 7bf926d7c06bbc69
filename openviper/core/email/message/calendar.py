"""Check calendars that travel as a body of a message (RFC 5545, RFC 5546, RFC 6047)."""

import re
from typing import Any, NamedTuple, Protocol

from openviper.core.email.errors import InvalidMessage
from openviper.text import shown

__all__ = ["Calendar", "CalendarInput", "CalendarObject", "read_calendar"]


class CalendarObject(Protocol):
    """A calendar of the ``icalendar`` package, or anything else with its method."""

    def to_ical(self) -> bytes:
        """Return the calendar in the form of RFC 5545."""


CalendarInput = str | bytes | CalendarObject
"""The forms of a calendar: text, bytes in UTF-8, or an object with ``to_ical()``."""


class Calendar(NamedTuple):
    """A checked calendar: ``text`` has CRLF line ends and is folded as given, ``method`` is in upper case.

    ``attached``: it is sent as a file, too.
    """

    text: str
    method: str
    attached: bool = False

    @property
    def filename(self) -> str:
        """Return the name of the file that it is attached as."""
        return "cancel.ics" if self.method == "CANCEL" else "invite.ics"


# RFC 5546 section 1.4
_METHODS = ("PUBLISH", "REQUEST", "REPLY", "ADD", "CANCEL", "REFRESH", "COUNTER", "DECLINECOUNTER")
# RFC 5545 section 3.1: tabs and line ends are the only controls.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_FOLD = re.compile("\n[ \t]")
_METHOD = re.compile(r'METHOD(?:;(?:[^:"]|"[^"]*")*)?:[ \t]*(.*?)[ \t]*', re.IGNORECASE)


def read_calendar(value: Any, *, attached: bool = False) -> Calendar:
    """Check the calendar that an application gives; its method is that of its METHOD property.

    Line ends become CRLF; nothing else is changed.

    Raises:
        InvalidMessage: it is not one VCALENDAR with a component and a method of RFC 5546. The text shows nothing of it
            but a wrong method.
    """
    if not isinstance(attached, bool):
        raise InvalidMessage(f"calendar_attachment: must be True or False, not {shown(attached)}")
    text = _text(value).removeprefix("\ufeff").replace("\r\n", "\n")
    match = _CONTROL.search(text)
    if match is not None:
        raise InvalidMessage(
            f"calendar: contains the character U+{ord(match[0]):04X}; its lines may contain no control "
            "character except tab (RFC 5545 section 3.1)"
        )
    method = _method(text)
    return Calendar(text.rstrip("\n").replace("\n", "\r\n") + "\r\n", method, attached)


def _text(value: Any) -> str:
    if hasattr(value, "to_ical"):
        try:
            value = value.to_ical()
        except Exception as error:
            raise InvalidMessage(f"calendar: its to_ical() raised {type(error).__name__}") from error
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidMessage("calendar: is not UTF-8 (RFC 5545 section 6)") from None
    if not isinstance(value, str):
        raise InvalidMessage(
            f"calendar: must be text, bytes or an object with to_ical(), such as icalendar's, not "
            f"{type(value).__name__}"
        )
    return value


def _method(text: str) -> str:
    """Return the method of the only VCALENDAR that ``text`` is, with line ends LF."""
    lines = [line for line in _FOLD.sub("", text).split("\n") if line]
    open_components: list[str] = []
    components = 0
    methods: list[str] = []
    for number, line in enumerate(lines):
        name, _, rest = line.partition(":")
        word = name.upper()
        if word == "BEGIN":
            if not open_components and (number or rest.strip().upper() != "VCALENDAR"):
                raise _not_one()
            components += bool(open_components)
            open_components.append(rest.strip().upper())
        elif not open_components:
            raise _not_one()
        elif word == "END":
            if open_components.pop() != rest.strip().upper():
                raise InvalidMessage(f"calendar: line {number + 1} ends a component other than the one begun last")
        elif len(open_components) == 1 and (match := _METHOD.fullmatch(line)) is not None:
            methods.append(match[1])
    if not lines or open_components:
        raise _not_one()
    if not components:
        raise InvalidMessage("calendar: has no component; put a VEVENT, VTODO, VJOURNAL or VFREEBUSY into it")
    return _checked_method(methods)


def _checked_method(methods: list[str]) -> str:
    if not methods:
        raise InvalidMessage(
            "calendar: has no METHOD, which a calendar in mail needs (RFC 6047 section 2.4); add METHOD:REQUEST to "
            "invite or to update, METHOD:CANCEL to cancel, METHOD:PUBLISH for an event that nobody answers"
        )
    method = methods[0].upper()
    if len(methods) > 1 or method not in _METHODS:
        raise InvalidMessage(
            f"calendar: its METHOD must be one of {', '.join(_METHODS)}, once (RFC 5546 section 1.4), not "
            f"{', '.join(map(shown, methods[:3]))}"
        )
    return method


def _not_one() -> InvalidMessage:
    return InvalidMessage(
        "calendar: must be one calendar, from BEGIN:VCALENDAR in its first line to END:VCALENDAR in its last (RFC 5545 "
        "section 3.4)"
    )
