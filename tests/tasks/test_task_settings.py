"""``TASKS`` is checked as a whole."""

from typing import Any

import pytest

from openviper.conf import override
from openviper.exceptions import ImproperlyConfigured
from openviper.tasks import TaskSettings


def faults(**given: Any) -> list[str]:
    with pytest.raises(ImproperlyConfigured) as caught:
        TaskSettings.load(given)
    return str(caught.value).splitlines()


def test_without_a_broker_tasks_are_off() -> None:
    settings = TaskSettings()
    assert not settings.enabled
    assert not settings.real


def test_naming_a_broker_turns_tasks_on() -> None:
    assert TaskSettings(broker="redis").real
    assert TaskSettings(broker="stub").enabled
    assert not TaskSettings(broker="stub").real
    assert not TaskSettings(broker="redis", enabled=False).real


def test_one_error_lists_every_fault() -> None:
    lines = faults(brokr="redis", enabled="yes", namespace="a b", modules="shop.tasks", heartbeat_timeout=1)
    assert [line.partition(":")[0] for line in lines] == [
        'TASKS["brokr"]',
        'TASKS["enabled"]',
        'TASKS["namespace"]',
        'TASKS["modules"]',
        'TASKS["heartbeat_timeout"]',
    ]
    assert "did you mean 'broker'?" in lines[0]


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("redis", "amqp://localhost"),
        ("redis", "localhost:6379"),
        ("redis", "redis://localhost:port"),
        ("rabbitmq", "redis://localhost"),
        ("stub", "redis://localhost"),
    ],
)
def test_a_url_of_another_broker_is_refused(kind: str, url: str) -> None:
    (line,) = faults(broker=kind, broker_url=url)
    assert line.startswith('TASKS["broker_url"]')


@pytest.mark.parametrize("url", ["http://user:very-secret@host", 7, b"redis://very-secret@host"])
def test_a_wrong_url_is_not_shown(url: Any) -> None:
    (line,) = faults(broker="redis", broker_url=url)
    assert "very-secret" not in line


def test_the_password_is_in_no_text() -> None:
    settings = TaskSettings(broker="redis", broker_url="redis://user:very-secret@redis.example:6380/1")
    assert "very-secret" not in f"{settings!r} {settings} {settings.address}"
    assert settings.address == "redis at redis.example:6380"
    assert "very-secret" in settings.url


def test_they_follow_the_settings_module() -> None:
    assert not TaskSettings.from_settings().enabled
    with override(TASKS={"broker": "stub"}):
        assert TaskSettings.from_settings().enabled
    with override(TASKS=["redis"]), pytest.raises(ImproperlyConfigured, match="TASKS: is a list"):
        TaskSettings.from_settings()
