"""The applications of "Getting started", run as their reader would run them."""

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
        assert "alice at example.com" in answer.json()["detail"]
        assert httpx.get(f"{url}/_mail/api/messages", timeout=PATIENCE).json()["messages"] == []
