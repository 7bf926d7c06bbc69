"""Failover: mail moves on to the next server when one does not answer, and only then."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from support.patience import PATIENCE
from support.ports import lasting_port
from support.smtpd import SmtpServer

from openviper.core.email import (
    ConnectionFailed,
    DeliveryError,
    MessageEvent,
    MessageRefused,
    RecipientsRefused,
    send_email,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.events import subscribe
from openviper.core.email.settings import EmailSettings


def settings(first: Mapping[str, Any], second: Mapping[str, Any], **more: Any) -> EmailSettings:
    common = {"default_sender": "shop@example.com", "timeout": PATIENCE, "retry_period": 0.2}
    return EmailSettings(**{**common, **first, "failover": ["backup"], "mailers": {"backup": {**second}}, **more})


def server_at(port: int) -> SmtpServer:
    server = SmtpServer()
    server.port = port
    return server


def place(server: SmtpServer) -> dict[str, Any]:
    return {"host": server.host, "port": server.port}


async def send(made: Mailer, **message: Any) -> str | None:
    """Send inline and return by which mailer it went."""
    via: list[str | None] = []

    def note(event: MessageEvent) -> None:
        if event.kind == "delivered":
            via.append(event.via)

    end = subscribe(note)
    try:
        with using_mailer(made):
            await send_email("a@example.com", "Hello", "Hi", background=False, **message)
    finally:
        end()
    return via[0]


async def test_the_first_server_is_used_again_when_it_answers_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    port = lasting_port()
    with SmtpServer() as backup:
        mailer = Mailer(settings({"host": "127.0.0.1", "port": port}, place(backup)))
        assert [await send(mailer) for _ in range(3)] == ["backup"] * 3
        with server_at(port) as first:
            await asyncio.sleep(0.3)
            assert [await send(mailer) for _ in range(3)] == ["default"] * 3
            assert len(first.messages) == 3
        await mailer.aclose()
        assert len(backup.messages) == 3
    changes = [record.getMessage() for record in caplog.records if "failover" in record.getMessage()]
    assert len(changes) == 2
    assert changes[0].startswith(f"failover: mailer default is down: 127.0.0.1:{port}: connecting")
    assert changes[1] == "failover: mailer default is up again"


async def test_while_a_server_is_down_it_is_not_asked() -> None:
    with SmtpServer() as first, SmtpServer() as backup:
        first.fault("greeting", 421)
        mailer = Mailer(settings(place(first), place(backup), retry_period=3600))
        assert [await send(mailer) for _ in range(4)] == ["backup"] * 4
        await mailer.aclose()
        assert first.connections == 1


@pytest.mark.parametrize(
    ("verb", "action", "error"),
    [
        ("MAIL", 550, MessageRefused),
        ("MAIL", 451, MessageRefused),
        ("RCPT", 550, RecipientsRefused),
        ("RCPT", 450, RecipientsRefused),
        ("body", 554, MessageRefused),
        ("body", "drop", DeliveryError),
    ],
)
async def test_what_a_server_refuses_is_not_offered_to_another(
    verb: str, action: int | str, error: type[DeliveryError]
) -> None:
    with SmtpServer() as first, SmtpServer() as backup:
        first.fault(verb, action)
        mailer = Mailer(settings(place(first), place(backup)))
        with pytest.raises(error) as raised:
            await send(mailer)
        assert raised.value.uncertain is (action == "drop")
        await mailer.aclose()
        assert backup.connections == 0


@pytest.mark.parametrize(("verb", "action"), [("greeting", 554), ("EHLO", "drop"), ("MAIL", "drop"), ("RCPT", 421)])
async def test_a_broken_connection_moves_on(verb: str, action: int | str) -> None:
    with SmtpServer() as first, SmtpServer() as backup:
        first.fault(verb, action)
        # In one flight the content has left with MAIL, so that the outcome would be uncertain.
        mailer = Mailer(settings(place(first), place(backup), one_flight=False))
        assert await send(mailer) == "backup"
        await mailer.aclose()
        assert (len(first.messages), len(backup.messages)) == (0, 1)


async def test_when_all_are_down_the_one_down_longest_is_tried() -> None:
    ports = lasting_port(), lasting_port()
    first, second = ({"host": "127.0.0.1", "port": port} for port in ports)
    mailer = Mailer(settings(first, second, retry_period=3600))
    with pytest.raises(ConnectionFailed) as raised:
        await send(mailer)
    assert raised.value.temporary
    with server_at(ports[0]):
        assert await send(mailer) == "default"
    await mailer.aclose()


async def test_a_named_mailer_may_fall_back_on_the_default_one() -> None:
    with SmtpServer() as main:
        bulk = {"host": "127.0.0.1", "port": lasting_port(), "failover": ["default"]}
        made = EmailSettings(**main.settings(default_sender="s@example.com"), mailers={"bulk": bulk})
        mailer = Mailer(made)
        assert await send(mailer, mailer="bulk") == "default"
        await mailer.aclose()
        assert len(main.messages) == 1


@pytest.mark.parametrize(("sends", "stops"), [(200, 4), pytest.param(2000, 20, marks=pytest.mark.long)])
async def test_failover_under_fire(sends: int, stops: int) -> None:
    """The first server stops again and again; nothing is lost but what is reported as uncertain."""
    first = server_at(lasting_port())
    raised: Counter[str] = Counter()
    accepted: set[str] = set()
    numbers = iter(range(sends))

    async def work() -> None:
        for number in numbers:
            try:
                receipt = await submit_email(f"n{number}@example.com", str(number), "Hi", background=False)
                accepted.update(receipt.accepted)
            except DeliveryError as error:
                raised["uncertain" if error.uncertain else str(error)] += 1

    with SmtpServer() as backup:
        mailer = Mailer(settings(place(first), place(backup), retry_period=0.05))
        await asyncio.to_thread(first.__enter__)
        with using_mailer(mailer):
            workers = [asyncio.create_task(work()) for _ in range(4)]
            for stop in range(1, stops + 1):
                while len(accepted) + raised.total() < stop * sends // (stops + 1):
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(first.stop)
                done = len(accepted)
                while len(accepted) < min(done + 3, sends - raised.total()):  # mail goes on meanwhile
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(first.__enter__)
            await asyncio.gather(*workers)
        await mailer.aclose()
        await asyncio.to_thread(first.stop)
        arrived = [message.recipients[0] for message in (*first.messages, *backup.messages)]
        shares = len(first.messages), len(backup.messages)
    print(f"{sends} sends, {stops} stops: first {shares[0]}, backup {shares[1]}, raised {dict(raised)}")
    assert set(raised) <= {"uncertain"}
    assert accepted <= set(arrived)
    assert len(accepted) + raised.total() == sends
    assert len(arrived) == len(set(arrived))
    assert min(shares) > 0
