"""Real applications of every framework under a real uvicorn, with a real SMTP server behind them."""

import asyncio
import random
import signal
import socket
from collections import Counter
from pathlib import Path

import httpx
import pytest
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn

APPS = Path(__file__).parents[3] / "apps"


def env(smtp: SmtpServer, **more: str) -> dict[str, str]:
    email = {"HOST": smtp.host, "PORT": smtp.port, "DEFAULT_SENDER": "shop@example.test"}
    email |= {"TIMEOUT": 2 * PATIENCE, "SHUTDOWN_TIMEOUT": PATIENCE}
    return {f"EMAIL_{name}": str(value) for name, value in email.items()} | more


def subjects(smtp: SmtpServer) -> list[str]:
    return [str(message.parse()["Subject"]) for message in smtp.messages]


@pytest.mark.parametrize(
    "app",
    [
        "openviper_app:app",
        "starlette_app:app",
        "fastapi_app:app",
        "fastapi_app:attached",
        "litestar_app:app",
        "quart_app:app",
    ],
)
def test_each_framework_defers_until_the_response_has_ended(app: str) -> None:
    """The answer arrives while the mail server has not even greeted."""
    with SmtpServer() as smtp:
        greeting = smtp.hold("greeting")
        with Uvicorn(app, APPS, env(smtp)) as server:
            answer = httpx.get(f"{server.url}/order", params={"subject": app}, timeout=PATIENCE)
            assert (answer.status_code, answer.json()["mode"]) == (200, "deferred")
            assert smtp.messages == []
            greeting.release()
            smtp.wait_until(lambda: app in subjects(smtp))
            assert server.stop()


def test_a_commit_in_a_yield_dependency_still_sends() -> None:
    with SmtpServer() as smtp, Uvicorn("fastapi_app:app", APPS, env(smtp)) as server:
        httpx.get(f"{server.url}/order", timeout=PATIENCE)
        smtp.wait_for(2)
        assert sorted(subjects(smtp)) == ["dependency", "order"]


@pytest.mark.parametrize("prefix", ["", "/mounted"])
@pytest.mark.parametrize("kind", ["order", "threaded", "background", "spawned", "streaming", "state"])
def test_mail_leaves_from_every_place_of_a_request(prefix: str, kind: str) -> None:
    with SmtpServer() as smtp, Uvicorn("starlette_app:app", APPS, env(smtp)) as server:
        assert httpx.get(f"{server.url}{prefix}/{kind}", timeout=PATIENCE).status_code == 200
        smtp.wait_for(1)
        assert subjects(smtp) == [kind]


def test_an_exception_handler_sends_and_so_does_what_was_accepted_before_it() -> None:
    with SmtpServer() as smtp, Uvicorn("starlette_app:app", APPS, env(smtp)) as server:
        assert httpx.get(f"{server.url}/failing", timeout=PATIENCE).status_code == 500
        smtp.wait_for(2)
        assert sorted(subjects(smtp)) == ["exception handler", "failing"]


def test_with_discard_on_error_a_failed_request_sends_nothing() -> None:
    with SmtpServer() as smtp:
        with Uvicorn("starlette_app:app", APPS, env(smtp, EMAIL_DISCARD_ON_ERROR="true")) as server:
            assert httpx.get(f"{server.url}/failing", timeout=PATIENCE).status_code == 500
            assert httpx.get(f"{server.url}/order", timeout=PATIENCE).status_code == 200
            server.stop()
        assert subjects(smtp) == ["order"]


def test_mail_of_the_applications_own_lifespan_is_delivered() -> None:
    with SmtpServer() as smtp:
        with Uvicorn("starlette_app:with_lifespan", APPS, env(smtp)) as server:
            assert server.stop()
        assert subjects(smtp) == ["startup", "shutdown"]


@pytest.mark.parametrize(
    ("app", "path", "arguments"),
    [("starlette_app:mounted_only", "/inner/order", ()), ("starlette_app:app", "/order", ("--lifespan", "off"))],
)
def test_without_a_lifespan_mail_opens_at_first_use_and_is_not_lost(
    app: str, path: str, arguments: tuple[str, ...]
) -> None:
    with SmtpServer() as smtp:
        with Uvicorn(app, APPS, env(smtp), *arguments) as server:
            for _ in range(2):
                assert httpx.get(f"{server.url}{path}", timeout=PATIENCE).status_code == 200
            assert server.stop()
        assert len(smtp.messages) == 2
        assert sum("lifespan was not run" in line for line in server.log) == 1


def test_wrong_settings_stop_the_start_with_a_readable_error() -> None:
    with pytest.raises(RuntimeError, match=r"EMAIL_USE_TLS") as caught:
        Uvicorn("starlette_app:app", APPS, {"EMAIL_USE_TLS": "perhaps"}).__enter__()
    assert "Traceback" not in str(caught.value)


def test_fifty_deferred_messages_arrive_before_the_process_ends() -> None:
    """None has been taken by the mail server when SIGTERM comes."""
    with SmtpServer() as smtp:
        gate = smtp.hold("body")
        with Uvicorn("starlette_app:app", APPS, env(smtp)) as server:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
                for number in range(50):
                    assert client.get("/order", params={"subject": f"number {number}"}).status_code == 200
            assert smtp.messages == []
            server.process.send_signal(signal.SIGTERM)
            server.read_until("Shutting down")
            gate.release()
            assert server.stop()
        assert sorted(subjects(smtp)) == sorted(f"number {number}" for number in range(50))


async def _ask_and_perhaps_leave(port: int, number: int, dice: random.Random) -> str | None:
    """Ask for an order; the message id, or None when the client left before it could read the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET /order?subject={number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.02)
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            return None
        answer = await reader.read()
        return answer.decode().rpartition("\r\n\r\n")[2]
    except ConnectionError:
        return None
    finally:
        writer.close()


async def test_clients_that_disconnect_lose_and_double_nothing() -> None:
    """Every message that was accepted (its events are counted by the server's log) arrives exactly once."""
    dice = random.Random(7)
    with SmtpServer() as smtp:
        server = Uvicorn("counting_app:app", APPS, env(smtp))
        await asyncio.to_thread(server.__enter__)
        try:
            numbers = iter(range(1000))

            async def client() -> None:
                for number in numbers:
                    await _ask_and_perhaps_leave(server.port, number, dice)

            await asyncio.gather(*(client() for _ in range(20)))
        finally:
            await asyncio.to_thread(server.stop)
        accepted = Counter(line.split()[1] for line in server.log if line.startswith("accepted "))
        arrived = Counter(str(message.parse()["Message-ID"]) for message in smtp.messages)
    assert len(accepted) > 400
    assert arrived == accepted
