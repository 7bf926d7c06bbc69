"""One rule for what means this machine."""

import pytest

from openviper.network import is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.0",
        "127.255.255.254",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::1%lo",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "localhost",
        "LocalHost",
        "localhost.",
        "shop.localhost",
        "a.b.LOCALHOST",
    ],
)
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        ".localhost",
        "localhost.example",
        "notlocalhost",
        "localhost..",
        "126.255.255.255",
        "128.0.0.1",
        "127.1",
        "127.0.0.1.nip.io",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "2130706433",
        "0.0.0.0",
        "::",
        "::2",
        "::ffff:126.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "[::1]",
        "127.0.0.1:25",
        "10.0.0.1",
        "fe80::1%lo",
        "mail.example.com",
        "ip6-localhost",
        "localhost\n",
        "127.0.0.1\n",
        "\uff11\uff12\uff17.0.0.1",
    ],
)
def test_another_machine_or_no_host(host: str) -> None:
    """What only resolves to a loopback address, or what another parser would read as one, is not this machine."""
    assert not is_loopback(host)
