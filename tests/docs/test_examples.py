"""The applications of "Getting started", run as their reader would run them."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.commands import Cli
from support.documents import ROOT, included
from support.patience import PATIENCE
from support.programs import run_pytest
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn

EXAMPLES = ROOT / "docs" / "examples"
ORDER = {"name": "Alice", "email": "alice@example.com", "product": "Field notebook"}
WORDS = {"openviper": "Thank you, Alice", "starlette": "See your order", "fastapi": "packing: Field notebook"}


def test_every_example_is_shown_on_a_page() -> None:
    assert included() == {path for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@contextmanager
def served(name: str, folder: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the example answers: by ``viperctl runserver`` or by uvicorn, as its page says."""
    project = shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if name == "openviper":
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        with Cli(project).serve(".", "--port", "0") as server:
            yield server.address.rstrip("/")
    else:
        with Uvicorn("app:app", project, environment) as server:
            yield server.url


def place(order: Mapping[str, str], url: str) -> dict[str, Any]:
    return dict(httpx.post(f"{url}/orders", json=order, timeout=PATIENCE).raise_for_status().json())


@pytest.mark.parametrize("name", WORDS)
def test_the_message_is_on_the_inbox_page_in_debug_mode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(name, tmp_path, {"DEBUG": "1"}, monkeypatch) as url:
        assert place(ORDER, url) == {"number": 1001}
        path = "/_mail/api/messages/wait?state=delivered&to=alice@example.com&timeout=60"
        message = httpx.get(url + path, timeout=PATIENCE).raise_for_status().json()
        assert (message["subject"], message["mode"]) == ("Your order 1001", "deferred")
        assert WORDS[name] in message["text"]
        assert "Your order 1001" in httpx.get(f"{url}/_mail/", timeout=PATIENCE).text


@pytest.mark.parametrize("name", WORDS)
def test_with_a_mail_server_in_the_environment_the_same_file_delivers_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmtpServer(users={"apikey": "secret"}) as smtp:
        environment = {
            "EMAIL_HOST": smtp.host,
            "EMAIL_TIMEOUT": str(PATIENCE),
            "EMAIL_PORT": str(smtp.port),
            "EMAIL_USERNAME": "apikey",
            "EMAIL_PASSWORD": "secret",
        }
        with served(name, tmp_path, environment, monkeypatch) as url:
            place(ORDER, url)
            (message,) = smtp.wait_for(1)
            assert httpx.get(f"{url}/_mail/", timeout=PATIENCE).status_code == 404
    assert message.recipients == ["alice@example.com"]
    parsed = message.parse()
    assert (parsed["From"], parsed["Subject"]) == ("Viper Supplies <orders@shop.example>", "Your order 1001")
    body = parsed.get_body(("plain",))
    assert body is not None
    assert WORDS[name] in body.get_content()


def test_the_fastapi_example_says_what_is_wrong_with_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served("fastapi", tmp_path, {"DEBUG": "1"}, monkeypatch) as url:
        answer = httpx.post(f"{url}/orders", json={**ORDER, "email": "alice at example.com"}, timeout=PATIENCE)
        assert answer.status_code == 422
        assert answer.json()["detail"] == "This address has no '@'"
        assert httpx.get(f"{url}/_mail/api/messages", timeout=PATIENCE).json()["messages"] == []


FAILING_COMMIT = """
import httpx
import pytest
from app import app
from database import sessions
from sqlalchemy import event
from sqlalchemy.orm import Session

pytestmark = pytest.mark.anyio


async def test_a_commit_that_fails_is_an_error_and_sends_nothing(client, mailbox):
    class Failing(Session):
        pass

    def fail(session):
        raise OSError("the disk is full")

    event.listen(Failing, "before_commit", fail)
    sessions.configure(sync_session_class=Failing)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as patient:
        answer = await patient.post("/orders", json={"email": "alice@example.com"})
    assert answer.status_code == 500
    mailbox.assert_not_sent()
"""


def test_the_tests_of_the_fastapi_shop_pass_and_a_failing_commit_is_told(tmp_path: Path) -> None:
    project = shutil.copytree(EXAMPLES / "fastapi-shop", tmp_path / "shop")
    (project / "test_zz_commit.py").write_text(FAILING_COMMIT)
    environment = {**os.environ, "BROKER_URL": "redis://127.0.0.1:1/0", "PYTHONPATH": f"{project}{os.pathsep}{ROOT}"}
    ended = run_pytest(project, environment, ".")
    assert ended.status == 0, ended.output + ended.errors
    assert "10 passed" in ended.output


def test_the_fastapi_shop_needs_no_server_in_debug_mode_and_staging_redirects(tmp_path: Path) -> None:
    project = shutil.copytree(EXAMPLES / "fastapi-shop", tmp_path / "shop")
    environment = {"DEBUG": "1", "OPENVIPER_SETTINGS_MODULE": "settings_staging"}
    with Uvicorn("app:app", project, environment) as server:
        httpx.post(f"{server.url}/signup", json={"email": "alice@example.com"}, timeout=PATIENCE).raise_for_status()
        path = "/_mail/api/messages/wait?state=delivered&to=alice@example.com&timeout=60"
        message = httpx.get(server.url + path, timeout=PATIENCE).raise_for_status().json()
    assert "http://127.0.0.1:8000/confirm/" in message["text"]
    (file,) = (project / "sent").glob("*.eml")
    assert b"X-Original-Recipients: alice@example.com" in file.read_bytes()
