"""Which addresses and host names may be fetched from."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

import pytest
from support.patience import PATIENCE

from openviper.core.email.attachments.netguard import HostRefused, check_host, is_public, public_addresses, resolve


def words(text: str) -> list[str]:
    return text.split()


NOT_PUBLIC = words("""
0.0.0.0 0.0.0.1 0.1.2.3 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.64.0.1 100.100.100.200
100.127.255.255 127.0.0.0 127.0.0.1 127.0.0.53 127.1.2.3 127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254
169.254.170.2 169.254.255.255 172.16.0.0 172.17.0.1 172.31.255.255 192.0.0.0 192.0.0.1 192.0.0.170 192.0.0.192
192.0.0.255 192.0.2.0 192.0.2.1 192.0.2.255 192.88.99.0 192.88.99.1 192.88.99.255 192.168.0.0 192.168.0.1
192.168.255.255 198.18.0.0 198.18.0.1 198.19.255.255 198.51.100.0 198.51.100.1 198.51.100.255 203.0.113.0 203.0.113.1
203.0.113.255 224.0.0.0 224.0.0.1 224.0.0.251 232.1.1.1 239.255.255.250 239.255.255.255 240.0.0.0 240.0.0.1 250.1.2.3
255.255.255.254 255.255.255.255 :: ::1 ::2 ::127.0.0.1 ::10.0.0.1 ::8.8.8.8 ::ffff:0.0.0.0 ::ffff:127.0.0.1
::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:100.64.0.1 ::ffff:169.254.169.254 ::ffff:192.168.0.1 ::ffff:8.8.8.8
::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8 64:ff9b::0.0.0.0 64:ff9b::127.0.0.1 64:ff9b::7f00:1 64:ff9b::10.0.0.1
64:ff9b::100.64.0.1 64:ff9b::169.254.169.254 64:ff9b::172.16.0.1 64:ff9b::192.168.1.1 64:ff9b::224.0.0.1
64:ff9b::255.255.255.255 64:ff9b:0:0:1::8.8.8.8 64:ff9b:1::1 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff:ffff:ffff:7f00:1 100::1
100:0:0:1::1 200::1 400::1 1000::1 2001::1 2001:0:7f00:1:: 2001:0:4136:e378:8000:63bf:80ff:fffe 2001:1::1 2001:2::1
2001:10::1 2001:20::1 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff 2001:db8::1 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 2002::
2002:7f00:1:: 2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe::1 2002:c0a8:101::1 2002:808:808::1 2002:ffff:ffff::
2a00:1450::5efe:127.0.0.1 2a00:1450::5efe:10.0.0.1 2a00:1450:1:2:200:5efe:192.168.0.1 3ffe::1 3fff::1
3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff 4000::1 5f00::1 8000::1 fc00::1 fd00::1 fd00:ec2::254 fd20:ce::254
fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe00::1 fe80::1 fe80::1%1 fe80::1%eth0 2606:4700::1111%1
febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff fec0::1 fec0::10.0.0.1 feff::1 ff00::1 ff01::1 ff02::1 ff02::fb ff05::1:3
ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
""")

PUBLIC = words("""
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255
192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 2001:200::1
2001:db7::1 2001:db9::1 2001:4860:4860::8888 2003::1 2606:4700:4700::1111 2a00:1450:4001:81b::200e 3fff:1000::1
64:ff9b::8.8.8.8 64:ff9b::1.1.1.1
""")

NO_ADDRESSES = ["", " ", "localhost", "0", "1", "127.1", "0x7f000001", "017700000001", "127.0.0.01", "1.2.3.4.5", "::g"]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_their_neighbours_and_ordinary_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("value", NO_ADDRESSES)
def test_what_is_not_a_canonical_address_is_not_public(value: str) -> None:
    assert not is_public(value)


def test_nothing_is_public_that_the_standard_library_calls_private() -> None:
    """One address of every /12 of IPv4, and of IPv6 by first hextet."""
    v4 = [ipaddress.IPv4Address(block << 20 | 0x1234) for block in range(1 << 12)]
    v6 = [ipaddress.IPv6Address(hextet << 112 | 0x1234) for hextet in range(1 << 16)]
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [*v4, *v6]
    assert not [address for address in addresses if is_public(address) and not address.is_global]


HOSTS = {
    "Example.COM": "example.com",
    "example.com.": "example.com",
    "xn--bcher-kva.example": "xn--bcher-kva.example",
    "a_b.example": "a_b.example",
    "4.example": "4.example",
    "8.8.8.8": "8.8.8.8",
    "8.8.8.8.": "8.8.8.8",
    "0:0:0:0:0:0:0:1": "::1",
    "2606:4700:4700:0::1111": "2606:4700:4700::1111",
    "0xcafe.example": "0xcafe.example",
    "a" * 63 + ".example": "a" * 63 + ".example",
}


@pytest.mark.parametrize(("host", "spelled"), HOSTS.items())
def test_a_host_gets_one_spelling(host: str, spelled: str) -> None:
    assert check_host(host) == spelled


BAD_HOSTS = words(r"""
2130706433 0x7f000001 0x7F000001 017700000001 0177.0.0.1 0177.0.0.0x1 127.1 127.0.1 0x7f.1 0x7f.0x0.0x0.0x1 127.0.0.01
127.0.0.001 0 0x 00 1 256.256.256.256 127.0.0.256 1.2.3.4.5 127.0.0.1.. .127.0.0.1 example.123 example.0x7f example.0x
. .. a..b .example -a.example a-.example a/b a:b a@b a%b %31%32%37.0.0.1 [::1 ::1] [::1] 127.0.0.1,8.8.8.8 a\b
1.2.3.4/8 *.example a!b
""")


@pytest.mark.parametrize(
    "host", [*BAD_HOSTS, "", "a" * 64, "a." * 127 + "com", "a b", "a\tb", "127\u30020\u30020\u30021", "\uff11.0.0.1"]
)
def test_numbers_and_what_is_no_host_name_are_refused(host: str) -> None:
    with pytest.raises(HostRefused):
        check_host(host)


class Resolver:
    """Answers from a list, one after the other, and counts the questions."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_all_public_addresses_are_given_in_the_resolvers_order() -> None:
    resolver = Resolver(["8.8.8.8", "2606:4700::1111", "1.1.1.1"])
    assert await public_addresses("dns.example", 443, resolver=resolver) == ["8.8.8.8", "2606:4700::1111", "1.1.1.1"]
    assert resolver.asked == [("dns.example", 443)]


@pytest.mark.parametrize(
    "answer", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1", "8.8.8.8"], ["8.8.8.8", "fe80::1%2"], ["nonsense"]]
)
async def test_one_address_that_is_not_public_refuses_the_host(answer: list[str]) -> None:
    with pytest.raises(HostRefused, match="not public"):
        await public_addresses("mixed.example", 80, resolver=Resolver(answer))


@pytest.mark.parametrize("failure", [socket.gaierror(-2, "unknown"), UnicodeError("label"), TimeoutError(), []])
async def test_a_name_without_an_address_is_refused(failure: Exception | list[str]) -> None:
    with pytest.raises(HostRefused, match=r"resolved|no address"):
        await public_addresses("nowhere.example", 80, resolver=Resolver(failure))


async def test_an_address_is_judged_without_asking_the_resolver() -> None:
    resolver = Resolver()
    assert await public_addresses("8.8.8.8", 80, resolver=resolver) == ["8.8.8.8"]
    with pytest.raises(HostRefused):
        await public_addresses("192.168.0.1", 80, resolver=resolver)
    assert resolver.asked == []


@pytest.mark.parametrize("entry", ["cms.internal", "CMS.Internal", "cms.internal.", "cms.internal:8080"])
async def test_an_allowed_host_may_be_internal(entry: str) -> None:
    found = await public_addresses("cms.internal", 8080, allowed_hosts=[entry], resolver=Resolver(["10.0.0.5"]))
    assert found == ["10.0.0.5"]


@pytest.mark.parametrize("entry", ["internal", ".internal", "*.internal", "cms.internal:80", "cms", "10.0.0.5", ""])
async def test_an_entry_allows_exactly_what_it_names(entry: str) -> None:
    with pytest.raises(HostRefused):
        await public_addresses("cms.internal", 8080, allowed_hosts=[entry], resolver=Resolver(["10.0.0.5"]))


@pytest.mark.parametrize(("host", "entry"), [("::1", "::1"), ("::1", "[::1]:81"), ("127.0.0.1", "127.0.0.1:81")])
async def test_an_internal_address_can_be_allowed(host: str, entry: str) -> None:
    assert await public_addresses(host, 81, allowed_hosts=[entry]) == [host]


async def test_the_systems_resolver_is_asked_off_the_loop() -> None:
    async with asyncio.timeout(PATIENCE):
        assert "127.0.0.1" in await resolve("localhost", 80)
