"""No URL, name or redirect leads to an internal host.

A listening server counts connections, and every address that the event loop is asked to connect to is recorded; what
is not loopback is refused there, so that these tests send nothing out.
"""

import asyncio
import asyncio.selector_events
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Sequence

import pytest
from support.certificates import ca_file, server_context
from support.httpd import HttpServer, head
from support.patience import PATIENCE

from openviper.core.email.attachments import resolve_attachments
from openviper.core.email.attachments.bytelimit import ByteLimit, TotalLimit
from openviper.core.email.attachments.fetch import fetch
from openviper.core.email.errors import AttachmentRefused

PUBLIC = "93.184.215.14"


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were connected to or tried."""
    addresses: list[str] = []
    loop_class = asyncio.selector_events.BaseSelectorEventLoop
    connect = loop_class.sock_connect

    async def recorded(
        self: asyncio.selector_events.BaseSelectorEventLoop, sock: socket.socket, address: tuple[str, int]
    ) -> None:
        addresses.append(address[0])
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError(f"{address} is not on loopback")
        await connect(self, sock, address)

    monkeypatch.setattr(loop_class, "sock_connect", recorded)
    return addresses


@pytest.fixture
async def server(connected: list[str]) -> AsyncIterator[HttpServer]:
    async with HttpServer() as running:
        running.answer("/a", b"internal secret")
        yield running


NAMES = {
    "public.example": [PUBLIC],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "intranet": ["10.0.0.5"],
    "metadata.google.internal": ["169.254.169.254"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "mixed.example": [PUBLIC, "127.0.0.1"],
    "mixed-first.example": ["127.0.0.1", PUBLIC],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "sixtofour.example": ["2002:7f00:1::1"],
    "teredo.example": ["2001:0:4136:e378:8000:63bf:80ff:fffe"],
    "linklocal.example": ["fe80::1%1"],
    "sitelocal.example": ["fec0::1"],
    "ula.example": ["fd00:ec2::254"],
    "cgnat.example": ["100.64.0.1"],
    "zero.example": ["0.0.0.0"],
    "multicast.example": ["224.0.0.1"],
    "broadcast.example": ["255.255.255.255"],
    "unspecified.example": ["::"],
    "empty.example": [],
}


async def resolver(host: str, port: int) -> Sequence[str]:
    if host not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return NAMES[host]


def words(text: str) -> list[str]:
    return text.split()


# {port} is that of a server that listens on 127.0.0.1
URLS = words(r"""
http://127.0.0.1:{port}/a http://127.0.0.1:{port} http://127.0.0.1.:{port}/a http://127.1:{port}/a
http://127.0.1:{port}/a http://127.0.0.01:{port}/a http://127.000.000.001:{port}/a http://0177.0.0.1:{port}/a
http://0177.0.0.01:{port}/a http://017700000001:{port}/a http://0x7f000001:{port}/a http://0x7F000001:{port}/a
http://0x7f.0.0.1:{port}/a http://0x7f.1:{port}/a http://0x7f.0x0.0x0.0x1:{port}/a http://2130706433:{port}/a
http://2130706433.:{port}/a http://6425673729:{port}/a http://4294967297:{port}/a http://127.0.0.1.1:{port}/a
http://127.0.0.257:{port}/a http://127.255.255.254:{port}/a http://127.0.0.2:{port}/a http://0:{port}/a
http://0.0.0.0:{port}/a http://0x0:{port}/a http://00000000:{port}/a http://0.0:{port}/a http://[::1]:{port}/a
http://[::]:{port}/a http://[0:0:0:0:0:0:0:1]:{port}/a http://[0000::0001]:{port}/a http://[::127.0.0.1]:{port}/a
http://[::ffff:127.0.0.1]:{port}/a http://[::ffff:7f00:1]:{port}/a http://[::ffff:7F00:0001]:{port}/a
http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/a http://[::ffff:0:127.0.0.1]:{port}/a http://[64:ff9b::127.0.0.1]:{port}/a
http://[64:ff9b::7f00:1]:{port}/a http://[64:ff9b:1::7f00:1]:{port}/a http://[2002:7f00:1::]:{port}/a
http://[2002:7f00:1::1]:{port}/a http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}/a http://[fe80::1]:{port}/a
http://[fe80::1%25lo]:{port}/a http://[fe80::1%lo]:{port}/a http://[::1%25lo]:{port}/a http://[fec0::1]:{port}/a
http://[fc00::1]:{port}/a http://[fd00:ec2::254]/latest http://[ff02::1]:{port}/a http://[::1]/ http://[::1
http://::1]/ http://::1/ http://[]/ http://[127.0.0.1]:{port}/a http://[v1.x]/ http://10.0.0.1/ http://10.1/
http://100.64.0.1/ http://100.100.100.200/latest/ http://169.254.169.254/latest/meta-data/ http://169.254.170.2/v2
http://2852039166/ http://0xa9fea9fe/ http://0251.0376.0251.0376/ http://[::ffff:169.254.169.254]/ http://172.16.0.1/
http://172.31.255.254/ http://192.0.0.1/ http://192.0.0.192/opc http://192.0.2.1/ http://192.88.99.1/
http://192.168.0.1/ http://192.168.1/ http://198.18.0.1/ http://198.51.100.1/ http://203.0.113.1/ http://224.0.0.1/
http://239.255.255.250/ http://240.0.0.1/ http://255.255.255.255/ http://168.63.129.16/metadata
http://localhost:{port}/a http://LOCALHOST:{port}/a http://LocalHost.:{port}/a http://localhost..:{port}/a
http://localhost.localdomain:{port}/a http://intranet:{port}/a http://metadata.google.internal/x
http://127.0.0.1.nip.example:{port}/a http://mixed.example:{port}/a http://mixed-first.example:{port}/a
http://mapped.example:{port}/a http://nat64.example:{port}/a http://sixtofour.example:{port}/a
http://teredo.example:{port}/a http://linklocal.example:{port}/a http://sitelocal.example:{port}/a
http://ula.example:{port}/a http://cgnat.example:{port}/a http://zero.example:{port}/a
http://multicast.example:{port}/a http://broadcast.example:{port}/a http://unspecified.example:{port}/a
http://empty.example:{port}/a http://unknown.example:{port}/a http://public.example@127.0.0.1:{port}/a
http://public.example:80@127.0.0.1:{port}/a http://public.example:pass@127.0.0.1:{port}/a
http://a@b@127.0.0.1:{port}/a http://127.0.0.1:{port}@127.0.0.1:{port}/a http://public.example%40127.0.0.1:{port}/a
http://127.0.0.1:{port}\@public.example/a http://public.example\@127.0.0.1:{port}/a http:\\127.0.0.1:{port}\a
http:/\127.0.0.1:{port}/a http:///127.0.0.1:{port}/a http://?@127.0.0.1:{port}/a http://#@127.0.0.1:{port}/a
http://@127.0.0.1:{port}/a http://:@127.0.0.1:{port}/a http://%31%32%37.0.0.1:{port}/a http://127%2e0%2e0%2e1:{port}/a
http://127.0.0.1%00.public.example:{port}/a http://127.0.0.1%09:{port}/a http://127.0.0.1%23.public.example:{port}/a
http://-127.0.0.1:{port}/a http://127.0.0.1,public.example:{port}/a http://127.0.0.1;public.example:{port}/a
http://*:{port}/a http://.:{port}/a http://..:{port}/a http://_:{port}/a http://public.example:0/
http://public.example:65536/ http://public.example:99999999/ http://public.example:-1/ http://public.example:x/
http://public.example:{port}:{port}/a http:// http://: http://:{port}/a http:///a http://@/ http://user:pass@/
HTTP://127.0.0.1:{port}/a HtTp://LOCALHOST:{port}/a https://127.0.0.1:{port}/a https://localhost:{port}/a
https://[::1]:{port}/a https://0x7f.1:{port}/a file:///etc/passwd file://localhost/etc/passwd FILE:///etc/passwd
file:////etc/passwd ftp://127.0.0.1/a ftps://127.0.0.1/a sftp://127.0.0.1/a gopher://127.0.0.1:{port}/_GET
dict://127.0.0.1:{port}/ ldap://127.0.0.1/ tftp://127.0.0.1/a jar:http://127.0.0.1!/a data://text/plain,x php://input
ws://127.0.0.1:{port}/a wss://127.0.0.1:{port}/a unix:///run/x.sock http+unix://%2frun%2fx.sock/a
view-source://127.0.0.1/ smb://127.0.0.1/a
""")

ODD_URLS = [
    " http://127.0.0.1:{port}/a",
    "http://127.0.0.1:{port}/a ",
    "http://127.0.0.1:{port}/a\r\nHost: x",
    "http://public.example/\r\nHost: x",
    "http://public.example\n@127.0.0.1:{port}/a",
    "http://public.example\t.evil.example/",
    "http://public.example\x00.evil.example/",
    "http://public.example\x7f/",
    "ht\ntp://127.0.0.1:{port}/a",
    "http ://127.0.0.1:{port}/a",
    "http://127.0.0.1 :{port}/a",
    "http://127.0.0.1 .public.example:{port}/a",
    "http://127\u30020\u30020\u30021:{port}/a",
    "http://\uff11\uff12\uff17.0.0.1:{port}/a",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/a",
    "http://\u2113ocalhost:{port}/a",
    "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/a",
    "http://loc\u00adalhost:{port}/a",
    "http://local\u200bhost:{port}/a",
    "http://127.0.0.1\uff0f.public.example:{port}/a",
    "http://\u202e127.0.0.1:{port}/a",
    "http://xn--127-0-0-1-:{port}/a",
    "http://\ud800.example:{port}/a",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 200 + "example/",
    "http://public.example/" + "a" * 70_000,
]


@pytest.mark.parametrize("form", [*URLS, *ODD_URLS], ids=lambda form: ascii(form)[1:60])
async def test_a_url_to_anything_but_a_public_host_is_refused_unconnected(
    form: str, server: HttpServer, connected: list[str]
) -> None:
    """As a str, as the content of a tuple and as the url of a dict."""
    url = form.replace("{port}", str(server.port))
    for item in (url, ("a.txt", url), {"url": url}):
        with pytest.raises(AttachmentRefused):
            await resolve_attachments([item], resolver=resolver, url_timeout=PATIENCE)
    assert connected == []
    assert server.connections == 0


async def get(url: str, **options: object) -> bytes:
    limit = ByteLimit("file", 1000, TotalLimit(None))
    options.setdefault("resolver", resolver)
    fetched = await fetch(url, limit=limit, timeout=PATIENCE, **options)  # type: ignore[arg-type]
    assert isinstance(fetched.content, bytes)
    return fetched.content


class Rebinding:
    """A name that is public when it is asked for first, and 127.0.0.1 ever after."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if host == "localhost":
            return ["127.0.0.1"]
        self.asked += 1
        return [PUBLIC] if self.asked == 1 else ["127.0.0.1"]


async def test_a_rebinding_name_never_reaches_loopback(server: HttpServer, connected: list[str]) -> None:
    """The one answer that was checked is the one that is connected to."""
    rebinding = Rebinding()
    with pytest.raises(AttachmentRefused, match="could not be fetched"):
        await get(server.url("/a", host="rebind.example"), resolver=rebinding)
    assert connected == [PUBLIC]
    assert rebinding.asked == 1
    for _ in range(3):
        with pytest.raises(AttachmentRefused, match="not public"):
            await get(server.url("/a", host="rebind.example"), resolver=rebinding)
    assert connected == [PUBLIC]
    assert server.connections == 0


async def test_a_rebinding_name_in_a_redirect_never_reaches_loopback(server: HttpServer, connected: list[str]) -> None:
    async with HttpServer() as entrance:
        entrance.answer("/in", status=302, headers={"Location": server.url("/a", host="rebind.example")})
        rebinding = Rebinding()
        for reason in ("could not be fetched", "not public"):
            with pytest.raises(AttachmentRefused, match=reason):
                await get(entrance.url("/in"), allowed_hosts=["localhost"], resolver=rebinding)
    assert connected == ["127.0.0.1", PUBLIC, "127.0.0.1"]
    assert server.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/a",
        "//127.0.0.1:{port}/a",
        "http://0x7f.1:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://intranet:{port}/a",
        "http://mixed.example:{port}/a",
        "http://me:secret@127.0.0.1:{port}/a",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "javascript:alert(1)",
        "http://[",
        "http://public.example:0/",
        "http://public.example/" + "a" * 70_000,
    ],
    ids=lambda location: location[:40],
)
async def test_a_redirect_is_judged_like_a_url(server: HttpServer, connected: list[str], location: str) -> None:
    async with HttpServer() as entrance:
        entrance.answer("/in", status=302, headers={"Location": location.replace("{port}", str(server.port))})
        with pytest.raises(AttachmentRefused):
            await get(entrance.url("/in"), allowed_hosts=["localhost"])
    assert connected == ["127.0.0.1"]
    assert server.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(server: HttpServer, status: int) -> None:
    server.answer("/1", status=status, headers={"Location": "/2"})
    server.answer("/2", status=status, headers={"Location": f"//localhost:{server.port}/3?x=1"})
    server.answer("/3", status=status, headers={"Location": server.url("/a")})
    assert await get(server.url("/1"), allowed_hosts=["localhost"]) == b"internal secret"
    assert [request.target for request in server.requests] == ["/1", "/2", "/3?x=1", "/a"]


async def test_a_fourth_redirect_and_a_loop_are_refused(server: HttpServer) -> None:
    server.answer("/loop", status=302, headers={"Location": "/loop"})
    with pytest.raises(AttachmentRefused, match="more than 3"):
        await get(server.url("/loop"), allowed_hosts=["localhost"])
    assert len(server.requests) == 4


async def test_a_redirect_without_a_target_is_refused(server: HttpServer) -> None:
    server.answer("/in", status=302)
    with pytest.raises(AttachmentRefused, match="302 without a Location"):
        await get(server.url("/in"), allowed_hosts=["localhost"])


async def test_the_body_of_a_redirect_is_not_waited_for(server: HttpServer) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(head(302, location="/a", content_length=10**12))
        await asyncio.sleep(10 * PATIENCE)

    server.respond("/in", endless)
    assert await get(server.url("/in"), allowed_hosts=["localhost"]) == b"internal secret"


async def test_a_redirect_from_https_to_http_is_refused(server: HttpServer) -> None:
    trusting = ssl.create_default_context(cafile=ca_file())
    async with HttpServer(server_context()) as secure:
        secure.answer("/down", status=302, headers={"Location": server.url("/a")})
        secure.answer("/up", b"secure")
        with pytest.raises(AttachmentRefused, match="from https to http"):
            await get(secure.url("/down"), allowed_hosts=["localhost"], ssl_context=trusting)
        server.answer("/up", status=302, headers={"Location": secure.url("/up")})
        assert await get(server.url("/up"), allowed_hosts=["localhost"], ssl_context=trusting) == b"secure"
    assert [request.target for request in server.requests] == ["/up"]


async def test_credentials_stay_with_the_origin_that_they_were_given_for(server: HttpServer) -> None:
    async with HttpServer() as other:
        other.answer("/a", b"x")
        server.answer("/same", status=302, headers={"Location": "/other"})
        server.answer("/other", status=302, headers={"Location": other.url("/a", user="them:theirs")})
        await get(server.url("/same", user="me:mine"), allowed_hosts=["localhost"])
        assert ["authorization" in request.headers for request in server.requests] == [True, True]
        assert "authorization" not in other.requests[0].headers


async def test_only_the_allowed_host_may_be_internal(server: HttpServer) -> None:
    """By its exact name, and only at the port if one is given."""
    for allowed in ("localhost", f"LOCALHOST:{server.port}"):
        assert await get(server.url("/a"), allowed_hosts=[allowed]) == b"internal secret"
    served = server.connections
    for allowed in ("localhost:1", "ocalhost", "localhost.localdomain", "127.0.0.1", "*"):
        with pytest.raises(AttachmentRefused, match="attachment_hosts"):
            await get(server.url("/a"), allowed_hosts=[allowed])
    assert server.connections == served
