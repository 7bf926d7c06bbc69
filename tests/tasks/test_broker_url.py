"""``TASKS["broker_url"]``: what its client library would ignore, or find when it connects, is a wrong setting."""

from pathlib import Path
from typing import Any

import pytest
from support.certificates import ca_file
from support.lifespan import Lifespan

from openviper.conf import override
from openviper.core.email import EmailMiddleware
from openviper.exceptions import ImproperlyConfigured
from openviper.tasks import TaskSettings, get_broker

SECRET = "very-secret"


def fault(url: str) -> str:
    kind = "rabbitmq" if url.startswith("amqp") else "redis"
    with pytest.raises(ImproperlyConfigured) as caught:
        TaskSettings.load({"broker": kind, "broker_url": url})
    (line,) = str(caught.value).splitlines()
    assert line.startswith('TASKS["broker_url"]')
    assert SECRET not in line
    return line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/0?bogus=1", "parameter 'bogus', which is unknown or set by this package; there are client_name"),
        ("redis://h/0?socket_timout=1", "did you mean 'socket_timeout'?"),
        ("redis://h/0?decode_responses=true", "parameter 'decode_responses', which is unknown or set by this package"),
        ("redis://h/0?retry_on_timeout=yes", "set by this package"),
        ("redis://h/0?db=x", "parameter db; it is a whole number from 0 on"),
        ("redis://h/0?db=-1", "parameter db"),
        ("redis://h/0?db=", "parameter db"),
        ("redis://h/0?db=1&db=2", "the parameter db twice"),
        ("redis://h/0?socket_timeout=soon", "parameter socket_timeout; it is seconds"),
        ("redis://h/0?socket_timeout=nan", "parameter socket_timeout"),
        ("redis://h/0?socket_keepalive=on", "parameter socket_keepalive; it is true or false"),
        ("redis://h/0?protocol=4", "parameter protocol; it is 2 or 3"),
        ("redis://h/0?client_name=the shop", "parameter client_name"),
        ("redis://h/0?ssl_ca_certs=ca.pem", "ssl_ca_certs, which belongs to rediss://"),
        ("redis://h/shop", "not the number of a database"),
        ("redis://h/0/1", "not the number of a database"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "parameter ssl_cert_reqs; it is none, optional or required"),
        ("rediss://h/0?ssl_check_hostname=maybe", "parameter ssl_check_hostname"),
        ("rediss://h/0?ssl_min_version=TLSv1.3", "parameter ssl_min_version"),
        ("rediss://h/0?ssl_ciphers=NONE-SUCH", "parameter ssl_ciphers"),
        ("rediss://h/0?ssl_include_verify_flags=VERIFY_ALL", "parameter ssl_include_verify_flags"),
        ("unix://shop.sock", "names no socket"),
        ("unix://", "names no socket"),
        ("unix:///run/redis.sock?socket_keepalive=1", "parameter 'socket_keepalive'"),
        ("amqp://h/%2F?bogus=1", "parameter 'bogus'"),
        ("amqp://h/%2F?heartbeat=soon", "parameter heartbeat; it is a whole number from 0 to 65535"),
        ("amqp://h/%2F?heartbeat=-1", "parameter heartbeat"),
        ("amqp://h/%2F?connection_attempts=3", "parameter 'connection_attempts', which is unknown or set by"),
        ("amqp://h/%2F?ssl_options={}", "ssl_options, which belongs to amqps://"),
        ("amqps://h/%2F?ssl_options=ca.pem", "parameter ssl_options; it is a dict"),
        ("amqps://h/%2F?frame_max=1", "parameter frame_max"),
        (f"redis://:pa?{SECRET}=1@h/0", "write %23, %2F and %3F"),
        (f"redis://:pa/{SECRET}@h/0", "write %23, %2F and %3F"),
        (f"redis://:12/{SECRET}@h/0", "write %23, %2F and %3F"),
        (f"redis://:pa#{SECRET}@h/0", "write %23, %2F and %3F"),
        ("redis://h:port/0", "has a port that is not a number"),
        ("redis:h/0", "give one that begins with redis:// or rediss:// or unix://"),
        (f"amqp://shop:12?{SECRET}@h/%2F", "write %23, %2F and %3F"),
        (f"redis://:{SECRET}@h/0?bogus={SECRET}", "parameter 'bogus'"),
        (f"redis://h/0?password={SECRET}&db={SECRET}", "parameter db"),
        (f"redis://h/{SECRET}", "not the number of a database"),
    ],
)
def test_a_wrong_url_names_the_setting_and_the_parameter(url: str, words: str) -> None:
    assert words in fault(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h/",
        "redis:///3",
        "redis://user:p%40ss@h:6379/0?socket_timeout=2.5&health_check_interval=30&client_name=shop&protocol=2",
        "redis://h?db=2&socket_keepalive=True&max_connections=20",
        "redis://h/0?username=shop&password=p%26w",
        "rediss://h/0?ssl_cert_reqs=required&ssl_check_hostname=false&ssl_min_version=772",
        "rediss://h/0?ssl_include_verify_flags=VERIFY_X509_STRICT,VERIFY_CRL_CHECK_LEAF",
        "unix:///run/redis.sock?db=1",
        "unix://user:password@/run/redis.sock",
    ],
)
def test_what_redis_takes_is_taken_with_its_effect(url: str) -> None:
    """The library makes a connection of it, too."""
    with override(TASKS={"broker": "redis", "broker_url": url}):
        assert get_broker()


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:guest@h:5672/%2F?heartbeat=0",
        "amqp://h/shop?heartbeat=60&frame_max=131072&channel_max=10&locale=en_US",
        "amqp://h?tcp_options={'TCP_KEEPIDLE': 60}&client_properties={'connection_name': 'shop'}",
    ],
)
def test_what_rabbitmq_takes_is_taken(url: str) -> None:
    with override(TASKS={"broker": "rabbitmq", "broker_url": url}):
        assert get_broker()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("ssl_ca_certs=/no/such/ca.pem", "ssl_ca_certs or ssl_ca_path or ssl_ca_data cannot be used"),
        ("ssl_ca_certs={junk}", "ssl_ca_certs or ssl_ca_path or ssl_ca_data cannot be used"),
        (
            "ssl_certfile={ca}&ssl_keyfile=/no/such/key.pem",
            "ssl_certfile or ssl_keyfile or ssl_password cannot be used",
        ),
        ("ssl_certfile={junk}", "ssl_certfile or ssl_keyfile or ssl_password cannot be used"),
    ],
)
async def test_certificates_that_cannot_be_loaded_stop_the_start(tmp_path: Path, query: str, words: str) -> None:
    """The port is closed: nothing needs to be reached to find it."""
    (tmp_path / "junk.pem").write_text("junk")
    query = query.format(junk=tmp_path / "junk.pem", ca=ca_file())
    tasks = {"broker": "redis", "broker_url": f"rediss://:{SECRET}@127.0.0.1:1/0?{query}"}

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("nothing is asked of it")

    with (
        override(TASKS=tasks, EMAIL={"host": "127.0.0.1", "default_sender": "shop@example.com"}),
        pytest.raises(ImproperlyConfigured) as caught,
    ):
        async with Lifespan(EmailMiddleware(app)):
            pass
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
