"""Invitations from every function that sends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy

import icalendar
import pytest

from openviper.core.email import EmailMessageData, InvalidMessage, send_email, send_email_sync, send_many
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.settings import EmailSettings


@pytest.fixture
async def mailer() -> AsyncIterator[Mailer]:
    mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="Shop <shop@example.test>"))
    with using_mailer(mailer):
        yield mailer
    await mailer.aclose()


def invitation(number: int = 0) -> icalendar.Calendar:
    calendar = icalendar.Calendar()
    for name, value in (("prodid", "-//Shop//EN"), ("version", "2.0"), ("method", "REQUEST")):
        calendar.add(name, value)
    event = icalendar.Event()
    event.add("uid", f"{number}@example.test")
    event.add("dtstart", datetime(2030, 1, 2, tzinfo=UTC))
    calendar.add_component(event)
    return calendar


def calendars(mailer: Mailer) -> list[list[str]]:
    """Return the unique ids in each sent message's calendar, as the standard library and icalendar read it."""
    assert isinstance(mailer.backend, MemoryBackend)
    found = []
    for message in mailer.backend.messages:
        parsed = message_from_bytes(b"".join(message.content), policy=policy.default)
        (part,) = (part for part in parsed.walk() if part.get_content_type() == "text/calendar")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found.append([str(event["uid"]) for event in icalendar.Calendar.from_ical(content).events])
    return found


async def test_send_email_and_its_twin_send_one(mailer: Mailer) -> None:
    await send_email("a@example.test", "Hi", "Hello", calendar=invitation(1))
    await asyncio.to_thread(send_email_sync, "a@example.test", "Hi", "Hello", calendar=invitation(2).to_ical())
    assert calendars(mailer) == [["1@example.test"], ["2@example.test"]]
    with pytest.raises(InvalidMessage, match="calendar: has no METHOD"):
        await send_email("a@example.test", "Hi", "Hello", calendar="BEGIN:VCALENDAR\nBEGIN:A\nEND:A\nEND:VCALENDAR")
    assert len(calendars(mailer)) == 2


async def test_one_object_may_be_refilled_for_the_next_message_of_many(mailer: Mailer) -> None:
    """A dict's copy of an icalendar object has none of its events."""
    calendar = invitation()

    def messages() -> Iterator[EmailMessageData | dict[str, object]]:
        for number in range(4):
            calendar.events[0]["uid"] = icalendar.vText(f"{number}@example.test")
            if number % 2:
                yield {"recipients": "a@example.test", "subject": "Hi", "text": "Hello", "calendar": calendar}
            else:
                yield EmailMessageData("a@example.test", "Hi", "Hello", calendar=calendar)

    assert all([receipt async for receipt in send_many(messages())])
    assert sorted(calendars(mailer)) == [[f"{number}@example.test"] for number in range(4)]
