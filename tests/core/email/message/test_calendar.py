"""Invitations: where a calendar stands in a message, its method, and what is refused (RFC 6047, RFC 5546)."""

import json
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast

import icalendar
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends.console_view import render
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import EmailMessageData, PreparedMessage, check_message
from openviper.core.email.message.calendar import read_calendar
from openviper.core.email.message.serialiser import serialise, serialise_message_sync
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, Payload, decode, encode

TEXT = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Shop//EN
METHOD:REQUEST
BEGIN:VEVENT
UID:7@shop.example
DTSTAMP:20300101T000000Z
DTSTART:20300102T100000Z
SUMMARY:Größe
END:VEVENT
END:VCALENDAR
"""
CRLF = TEXT.replace("\n", "\r\n")


def an_event(method: str | None = "REQUEST", **more: Any) -> icalendar.Calendar:
    calendar, event = icalendar.Calendar(), icalendar.Event()
    calendar.add("prodid", "-//Shop//EN")
    calendar.add("version", "2.0")
    if method is not None:
        calendar.add("method", method)
    values = {
        "uid": "7@shop.example",
        "dtstamp": datetime(2030, 1, 1, tzinfo=UTC),
        "dtstart": datetime(2030, 1, 2, 10, tzinfo=UTC),
        "summary": "Ein sehr langer Betreff, der gefaltet wird: Größe, Übergröße; und noch ein wenig mehr ",
        "organizer": "mailto:shop@shop.example",
        "attendee": "mailto:a@example.com",
    }
    for name, value in (values | more).items():
        event.add(name, value)
    calendar.add_component(event)
    return calendar


def prepared(calendar: Any, **fields: Any) -> PreparedMessage:
    values = {"recipients": ["a@example.com"], "subject": "Hi", "text": "Hello", "sender": "shop@shop.example"}
    return check_message(EmailMessageData(**(values | fields), calendar=calendar), default_sender=None)


def parsed(message: PreparedMessage) -> EmailMessage:
    read = message_from_bytes(b"".join(serialise(message)), policy=policy.default)
    assert isinstance(read, EmailMessage)
    return read


def structure(part: Any) -> Any:
    kind = part.get_content_type()
    return [kind, *map(structure, part.iter_parts())] if part.is_multipart() else kind


IMAGE = AttachmentData("logo.png", b"x", "image/png", inline=True)
FILE = AttachmentData("a.pdf", b"x", "application/pdf")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["multipart/alternative", "text/plain", "text/calendar"]),
        ({"html": "<p>Hi"}, ["multipart/alternative", "text/plain", "text/html", "text/calendar"]),
        ({"text": None, "html": "<p>Hi"}, ["multipart/alternative", "text/html", "text/calendar"]),
        (
            {"html": "<img src='cid:logo.png'>", "attachments": [IMAGE]},
            ["multipart/alternative", "text/plain", ["multipart/related", "text/html", "image/png"], "text/calendar"],
        ),
        (
            {"attachments": [FILE]},
            ["multipart/mixed", ["multipart/alternative", "text/plain", "text/calendar"], "application/pdf"],
        ),
        (
            {"calendar_attachment": True},
            ["multipart/mixed", ["multipart/alternative", "text/plain", "text/calendar"], "application/ics"],
        ),
        (
            {"calendar_attachment": True, "attachments": [FILE]},
            [
                "multipart/mixed",
                ["multipart/alternative", "text/plain", "text/calendar"],
                "application/pdf",
                "application/ics",
            ],
        ),
    ],
)
def test_the_calendar_is_the_last_alternative(fields: dict[str, Any], expected: Any) -> None:
    assert structure(parsed(prepared(TEXT, **fields))) == expected


@pytest.mark.parametrize("given_as", ["object", "bytes", "text", "bytearray"])
def test_an_icalendar_object_is_read_back_as_it_was(given_as: str) -> None:
    """RFC 6047 section 2.4: the method in the header is that of the object; lines end with CRLF, folded as given."""
    calendar = an_event()
    written = calendar.to_ical()
    assert b"\r\n " in written, "a line is folded"
    forms = {"object": calendar, "bytes": written, "text": written.decode(), "bytearray": bytearray(written)}
    message = parsed(prepared(forms[given_as], calendar_attachment=True))
    body, attached = (part for part in message.walk() if part.get_content_subtype() in ("calendar", "ics"))
    assert body["content-type"] == 'text/calendar; method="REQUEST"; charset="utf-8"'
    assert "content-disposition" not in body
    assert body.get_payload(decode=True) == attached.get_payload(decode=True) == written
    assert (attached.get_content_disposition(), attached.get_filename()) == ("attachment", "invite.ics")
    (event,) = icalendar.Calendar.from_ical(cast("bytes", body.get_payload(decode=True))).events
    assert (event["uid"], event["summary"]) == ("7@shop.example", calendar.events[0]["summary"])
    assert b"Content-Type: text/calendar; method=REQUEST; charset=utf-8\r\n" in b"".join(serialise(prepared(calendar)))


@pytest.mark.parametrize("method", ["REQUEST", "CANCEL", "PUBLISH", "REPLY", "ADD", "REFRESH", "COUNTER"])
def test_the_method_is_that_of_the_object(method: str) -> None:
    message = parsed(prepared(an_event(method), calendar_attachment=True))
    (body,) = (part for part in message.walk() if part.get_content_type() == "text/calendar")
    assert body.get_param("method") == method
    (attached,) = message.iter_attachments()
    assert attached.get_filename() == ("cancel.ics" if method == "CANCEL" else "invite.ics")


@pytest.mark.parametrize(
    "text",
    [TEXT, CRLF, CRLF.rstrip(), "\ufeff" + TEXT, TEXT.replace("\n", "\r\n", 3), TEXT + "\n\n"],
    ids=["lf", "crlf", "unended", "bom", "mixed", "blank"],
)
def test_every_line_ends_with_crlf_whatever_was_given(text: str) -> None:
    assert read_calendar(text).text == read_calendar(text.encode()).text == CRLF


@pytest.mark.parametrize(
    "line",
    ["method:request", "METHOD;X-A=1:REQUEST", 'METHOD;X-A="a:b":REQUEST', "METH\n OD:REQUEST", "METHOD: REQUEST "],
)
def test_the_method_is_found_in_any_spelling(line: str) -> None:
    assert read_calendar(TEXT.replace("METHOD:REQUEST", line)).method == "REQUEST"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200))
def test_any_text_in_a_property_arrives(text: str) -> None:
    calendar = TEXT.replace("Größe", text)
    (body,) = (part for part in parsed(prepared(calendar)).walk() if part.get_content_type() == "text/calendar")
    assert body.get_payload(decode=True) == calendar.replace("\n", "\r\n").encode()


SECRET = "SECRET"


@pytest.mark.parametrize(
    ("calendar", "reason"),
    [
        (5, "must be text, bytes or an object with to_ical"),
        ([TEXT], "must be text, bytes or an object with to_ical"),
        (TEXT.encode("latin-1"), "is not UTF-8"),
        ("", "must be one calendar"),
        (SECRET, "must be one calendar"),
        (TEXT + TEXT, "must be one calendar"),
        (TEXT + SECRET, "must be one calendar"),
        (f"{SECRET}\n{TEXT}", "must be one calendar"),
        (TEXT.removesuffix("END:VCALENDAR\n"), "must be one calendar"),
        ("BEGIN:VEVENT\nEND:VEVENT\n", "must be one calendar"),
        (TEXT.replace("END:VEVENT", f"END:{SECRET}"), "line 10 ends a component other than"),
        (TEXT.replace("END:VEVENT\n", ""), "line 10 ends a component other than"),
        (TEXT.replace("Größe", "a\0b"), r"U\+0000"),
        (TEXT.replace("Größe", "a\rBcc: x"), r"U\+000D"),
        (TEXT.replace("Größe", "a\x0bb"), r"U\+000B"),
        (TEXT.replace("Größe", "a\x7fb"), r"U\+007F"),
        (TEXT.replace("Größe", "a\ud800b"), r"U\+D800"),
        ("BEGIN:VCALENDAR\nMETHOD:REQUEST\nEND:VCALENDAR\n", "has no component"),
        (TEXT.replace("METHOD:REQUEST\n", ""), "has no METHOD.*METHOD:REQUEST to invite"),
        (an_event(method=None), "has no METHOD"),
        (TEXT.replace("METHOD:REQUEST\n", "").replace("UID", "METHOD:REQUEST\nUID"), "has no METHOD"),
        (TEXT.replace("METHOD:REQUEST", "METHOD:INVITE"), "must be one of PUBLISH, REQUEST.*not 'INVITE'"),
        (TEXT.replace("METHOD:REQUEST", "METHOD:REQUEST; x=y"), "must be one of"),
        (TEXT.replace("METHOD:REQUEST", "METHOD:REQUEST\nMETHOD:CANCEL"), "once"),
    ],
)
def test_what_is_no_calendar_for_mail_is_refused_first(calendar: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=f"^calendar: .*{reason}") as caught:
        prepared(calendar)
    assert SECRET not in str(caught.value)


def test_an_object_that_cannot_be_written_is_refused() -> None:
    class Broken:
        def to_ical(self) -> bytes:
            raise KeyError(SECRET)

    with pytest.raises(InvalidMessage, match=r"its to_ical\(\) raised KeyError") as caught:
        prepared(Broken())
    assert SECRET not in str(caught.value)


def test_an_attachment_of_no_calendar_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="calendar: must be text"):
        prepared(None, calendar_attachment=True)
    with pytest.raises(InvalidMessage, match=r"calendar_attachment: must be True or False, not 'invite\.ics'"):
        prepared(TEXT, calendar_attachment="invite.ics")


def test_a_calendar_needs_a_body_and_counts_towards_the_size() -> None:
    with pytest.raises(InvalidMessage, match="there is no body"):
        prepared(TEXT, text=None)
    large = prepared(TEXT.replace("Größe", "x" * 300_000))
    with pytest.raises(InvalidMessage, match="the largest part is calendar with 300,"):
        serialise_message_sync(large, max_message_bytes=100_000)


@pytest.mark.parametrize("attached", [False, True])
def test_it_travels_through_the_queue_and_no_older_worker_drops_it(attached: bool) -> None:
    message = prepared(an_event(), calendar_attachment=attached)
    payload = encode(message)
    head = json.loads(payload.head)
    assert (head["version"], [*head["must"]]) == (2, ["calendar"])
    again = decode(payload)
    assert again == message
    assert (again.must, encode(again)) == ({}, payload)
    assert serialise(again) == serialise(message)
    with pytest.raises(NewerPayload, match="requires 'calendar'"):
        decode(payload, supported=frozenset())
    assert json.loads(encode(prepared(None)).head)["version"] == 1


@pytest.mark.parametrize(
    "damage", [None, 5, {}, {"text": 0}, {"text": 99, "attached": True}, {"text": 0, "attached": 1}]
)
def test_a_damaged_calendar_is_told_as_such(damage: Any) -> None:
    payload = encode(prepared(TEXT))
    head = json.loads(payload.head)
    head["must"]["calendar"] = damage
    with pytest.raises(DamagedPayload, match="calendar"):
        decode(Payload(json.dumps(head).encode(), payload.parts))


def test_the_console_lists_it() -> None:
    shown = render(serialise_message_sync(prepared(TEXT, calendar_attachment=True), max_message_bytes=10**6))
    assert f"(calendar)  text/calendar; method=REQUEST  {len(CRLF.encode())} bytes  attached, too" in shown
