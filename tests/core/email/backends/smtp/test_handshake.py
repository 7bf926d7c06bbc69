"""Handshake: host names, TLS, authentication, and secrets that stay secret."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import traceback
from base64 import b64encode
from collections.abc import Callable, Coroutine
from typing import Any

import aiosmtplib
import pytest
import uvloop
from support.certificates import CertificateKind
from support.messages import outgoing
from support.rawserver import Peer, greet, raw_server
from support.silence import silent
from support.smtpd import SmtpServer, Tls

from openviper.core.email.backends import SMTPBackend
from openviper.core.email.backends.smtp.authentication import authenticate
from openviper.core.email.backends.smtp.handshake import client_context, connect
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed, DeliveryTimeout
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

SECRET = "correct horse battery staple"


async def send_over(settings: EmailSettings) -> None:
    async with SMTPBackend(settings) as backend:
        await backend.send(outgoing())


async def send_one(server: SmtpServer, **settings: object) -> None:
    await send_over(EmailSettings(**server.settings(**settings)))
    await server.arrive(1)


# Reaching the server


async def test_a_closed_port_is_a_temporary_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionFailed, match=rf"^127\.0\.0\.1:{port}: connecting: .*refused") as raised:
        await connect(EmailSettings(host="127.0.0.1", port=port))
    assert raised.value.temporary
    assert raised.value.__cause__ is not None


async def test_a_host_name_without_an_address_is_a_temporary_failure() -> None:
    with pytest.raises(ConnectionFailed, match=r"^no-such-host\.invalid:25: connecting: ") as raised:
        await connect(EmailSettings(host="no-such-host.invalid"))
    assert raised.value.temporary


async def test_an_ipv6_address_is_shown_in_brackets() -> None:
    with SmtpServer(host="::1") as server:
        await send_one(server)
        server.fault("greeting", 554)
        with pytest.raises(ConnectionFailed, match=rf"^\[::1\]:{server.port}: greeting: 554 "):
            await connect(EmailSettings(**server.settings()))


async def test_another_kind_of_server_is_named_by_its_answer() -> None:
    async def converse(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request", b"")
        await peer.reader.read()

    async with raw_server(converse) as port:
        with pytest.raises(ConnectionFailed, match=r"HTTP/1\.1 400 Bad Request") as raised:
            await connect(EmailSettings(host="127.0.0.1", port=port))
    assert raised.value.temporary


# The name in EHLO


async def test_ehlo_sends_the_configured_name() -> None:
    with SmtpServer() as server:
        await send_one(server, local_hostname="shop.example.com")
    assert [command.line for command in server.commands if command.verb == "EHLO"] == ["EHLO shop.example.com"]


async def test_ehlo_without_a_configured_name_queries_no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> str:
        raise AssertionError("the DNS was asked")

    monkeypatch.setattr(socket, "getfqdn", refuse)
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    with SmtpServer() as server:
        await send_one(server)
        monkeypatch.setattr(socket, "gethostname", lambda: "laptop.example.com")
        await send_one(server)
        monkeypatch.setattr(socket, "gethostname", lambda: "not a name.example.com")
        await send_one(server)
    names = [command.line for command in server.commands if command.verb == "EHLO"]
    assert names == ["EHLO [127.0.0.1]", "EHLO laptop.example.com", "EHLO [127.0.0.1]"]


async def test_helo_is_sent_to_a_server_without_ehlo() -> None:
    with SmtpServer() as server:
        server.fault("EHLO", 502)
        await send_one(server)
    assert server.verbs[:4] == ["connect", "greeting", "EHLO", "HELO"]
    assert server.messages[0].via == "DATA"


# TLS


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("kind", ["untrusted", "wrong-host", "expired"])
async def test_an_untrusted_certificate_is_a_permanent_failure_before_auth(tls: Tls, kind: CertificateKind) -> None:
    with (
        SmtpServer(tls=tls, certificate=kind, users={"me": SECRET}) as server,
        pytest.raises(ConnectionFailed, match="certificate is not trusted") as raised,
    ):
        await connect(EmailSettings(**server.settings()))
    assert not raised.value.temporary
    assert not {"AUTH", "MAIL"} & set(server.verbs)


async def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    with SmtpServer(tls="implicit") as server, pytest.raises(ConnectionFailed, match="certificate is not trusted"):
        await connect(EmailSettings(**server.settings(tls_ca_file=None)))


async def test_starttls_that_is_not_offered_is_a_failure() -> None:
    with (
        SmtpServer() as server,
        pytest.raises(ConnectionFailed) as raised,
    ):
        await connect(EmailSettings(**server.settings(use_tls=True)))
    assert str(raised.value) == (
        f'127.0.0.1:{server.port}: STARTTLS is required (EMAIL["use_tls"]), but the server does not offer it here; '
        'use the port that offers it (587), or EMAIL["use_ssl"] with port 465'
    )
    assert not raised.value.temporary
    assert "MAIL" not in server.verbs


async def test_ehlo_is_repeated_after_starttls() -> None:
    with SmtpServer(tls="starttls") as server:
        await send_one(server)
    assert server.verbs[:5] == ["connect", "greeting", "EHLO", "STARTTLS", "EHLO"]


async def test_clear_text_behind_the_reply_to_starttls_is_discarded() -> None:
    """Discard it, because an attacker could inject it into the encrypted session (RFC 3207 section 4.2)."""
    with SmtpServer(tls="starttls", inject_after_starttls="250-evil.example\r\n250 AUTH PLAIN") as server:
        await send_one(server)
    assert server.messages[0].tls


async def test_a_port_without_tls_names_the_setting() -> None:
    with (
        SmtpServer() as server,
        pytest.raises(ConnectionFailed, match='EMAIL\\["use_ssl"\\] is for port 465') as raised,
    ):
        await connect(EmailSettings(**server.settings(use_ssl=True)))
    assert not raised.value.temporary


async def test_tls_below_1_2_is_refused() -> None:
    context = await client_context(None)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert await client_context(None) is context


async def test_a_missing_ca_file_names_the_setting(tmp_path: object) -> None:
    settings = EmailSettings(host="127.0.0.1", use_ssl=True, tls_ca_file=f"{tmp_path}/missing.pem")
    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["tls_ca_file"\]: .*missing\.pem'):
        await SMTPBackend(settings).open()


# AUTH


@pytest.mark.parametrize("method", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_each_auth_method_logs_in(method: str) -> None:
    with SmtpServer(users={"me@example.com": SECRET}, auth_methods=[method]) as server:
        await send_one(server)
    assert server.messages[0].user == "me@example.com"


async def test_a_token_is_sent_by_xoauth2() -> None:
    with SmtpServer(users={"me@example.com": SECRET}, auth_methods=["PLAIN", "XOAUTH2"], tls="implicit") as server:
        await send_one(server, password=None, xoauth2_token=SECRET)
        with pytest.raises(AuthenticationFailed) as raised:
            await connect(EmailSettings(**server.settings(password=None, xoauth2_token="expired")))
    assert (raised.value.code, raised.value.temporary) == (535, False)
    assert server.messages[0].user == "me@example.com"


@pytest.mark.parametrize("methods", [["PLAIN"], ["PLAIN", "LOGIN"], ["LOGIN", "PLAIN", "CRAM-MD5"]])
async def test_a_wrong_password_is_permanent_and_one_failed_login(methods: list[str]) -> None:
    """Several would lock people out: fail2ban counts them."""
    with (
        SmtpServer(users={"me": SECRET}, auth_methods=methods) as server,
        pytest.raises(AuthenticationFailed, match="AUTH: 535") as raised,
    ):
        await connect(EmailSettings(**server.settings(password="wrong")))
    assert (raised.value.code, raised.value.temporary) == (535, False)
    assert server.verbs.count("AUTH") == 1


@pytest.mark.parametrize("code", [504, 534, 538, 502])
async def test_after_the_refusal_of_a_method_the_next_one_logs_in(code: int) -> None:
    with SmtpServer(users={"me": SECRET}, auth_methods=["CRAM-MD5", "PLAIN", "LOGIN"]) as server:
        server.fault("AUTH", code, nth=1)
        server.fault("AUTH", code, nth=2)
        await send_one(server)
    assert [command.line.split()[1] for command in server.commands if command.verb == "AUTH"] == [
        "CRAM-MD5",
        "PLAIN",
        "LOGIN",
    ]


@pytest.mark.parametrize(
    ("codes", "told"), [([534, 538, 504], 534), ([504, 535, 504], 535), ([538, 454, 504], 454), ([530, 504], 530)]
)
async def test_the_refusal_that_ended_the_login_is_told_else_the_first(codes: list[int], told: int) -> None:
    with SmtpServer(users={"me": SECRET}, auth_methods=["CRAM-MD5", "PLAIN", "LOGIN"]) as server:
        for number, code in enumerate(codes, 1):
            server.fault("AUTH", code, nth=number)
        with pytest.raises(AuthenticationFailed, match=f"AUTH: {told} ") as raised:
            await connect(EmailSettings(**server.settings()))
    assert (raised.value.code, raised.value.temporary) == (told, told == 454)


async def test_a_server_that_closes_the_connection_at_auth_refuses_no_credentials() -> None:
    with SmtpServer(users={"me": SECRET}) as server:
        server.fault("AUTH", 421)
        with pytest.raises(ConnectionFailed, match="AUTH: 421") as raised:
            await connect(EmailSettings(**server.settings()))
    assert type(raised.value) is ConnectionFailed
    assert (raised.value.code, raised.value.temporary) == (421, True)
    assert server.verbs.count("AUTH") == 1


async def test_an_answer_that_came_is_told_although_the_next_method_gets_none() -> None:
    with SmtpServer(users={"me": SECRET}, auth_methods=["PLAIN", "LOGIN"]) as server:
        server.fault("AUTH", 538, nth=1)
        server.fault("AUTH", "drop", nth=2)
        with pytest.raises(ConnectionFailed, match=r"AUTH: the server closed .*; before that: .*AUTH: 538 ") as raised:
            await connect(EmailSettings(**server.settings()))
    assert raised.value.temporary


@pytest.mark.parametrize("length", [100, 366, 367, 2500])
@pytest.mark.parametrize("method", ["PLAIN", "LOGIN", "XOAUTH2"])
async def test_a_command_over_512_octets_is_sent_without_the_initial_response(method: str, length: int) -> None:
    user, secret = ("u" * length, SECRET) if method == "LOGIN" else ("me", "t" * length)
    token = {"password": None, "xoauth2_token": secret} if method == "XOAUTH2" else {}
    with SmtpServer(users={user: secret}, auth_methods=[method]) as server:
        await send_one(server, **token)
    (auth,) = [command.line for command in server.commands if command.verb == "AUTH"]
    assert len(auth) + 2 <= 512
    assert server.messages[0].user == user


async def _log_in(method: str, replies: list[bytes]) -> tuple[list[str], Exception | None]:
    """Log in at a server that gives these replies, then 235; return the lines it got, decoded, and the error."""
    lines: list[str] = []

    async def converse(peer: Peer) -> None:
        await greet(peer, f"AUTH {method}")
        for reply in [*replies, b"235 welcome"]:
            words = (await peer.line()).decode().split(" ")
            lines.append(" ".join(words))
            await peer.say(b"501 cancelled" if words == ["*"] else reply)
        await peer.line()

    async with raw_server(converse) as port:
        try:
            await connect(EmailSettings(host="127.0.0.1", port=port, username="me", password=SECRET))
        except ConnectionFailed as error:
            return lines, error
        return lines, None


NAME, PASSWORD = b64encode(b"me").decode(), b64encode(SECRET.encode()).decode()


@pytest.mark.parametrize("challenge", [b"334 ", b"334 UGFzc3dvcmQ6", b"334 Password:", b"354 go on"])
async def test_a_challenge_that_plain_does_not_know_cancels_the_exchange_for_good(challenge: bytes) -> None:
    lines, error = await _log_in("PLAIN", [challenge])
    assert lines[1:] == ["*"]
    assert isinstance(error, AuthenticationFailed)
    assert not error.temporary
    assert "PLAIN" in str(error)


@pytest.mark.parametrize("challenge", [b"334 no base64!", b"334 "])
async def test_a_challenge_of_cram_md5_that_cannot_be_read_cancels_the_exchange(challenge: bytes) -> None:
    lines, error = await _log_in("CRAM-MD5", [challenge])
    assert lines == ["AUTH CRAM-MD5", "*"]
    assert isinstance(error, AuthenticationFailed)
    assert not error.temporary


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["Password:"], [PASSWORD]),
        (["Username:", "Password:"], [NAME, PASSWORD]),
        (["User Name\0", "Password\0"], [NAME, PASSWORD]),
        (["Kennwort"], [PASSWORD]),
        (["Password for user me:"], [PASSWORD]),
        (["Username:", "Username:"], [NAME, "*"]),
        (["Password:", "Username:"], [PASSWORD, "*"]),
        (["Password:", "Password:"], [PASSWORD, "*"]),
    ],
)
async def test_login_sends_what_the_prompt_asks_for(prompts: list[str], expected: list[str]) -> None:
    lines, error = await _log_in("LOGIN", [b"334 " + b64encode(prompt.encode()) for prompt in prompts])
    assert lines == [f"AUTH LOGIN {NAME}", *expected]
    assert (error is None) == ("*" not in expected)
    assert error is None or not getattr(error, "temporary", True)


async def test_a_prompt_that_is_not_encoded_is_read_too() -> None:
    lines, error = await _log_in("LOGIN", [b"334 Username:", b"334 Password:"])
    assert lines[1:] == [NAME, PASSWORD]
    assert error is None


async def test_a_temporary_refusal_to_authenticate_tries_no_other_method() -> None:
    with SmtpServer(users={"me": SECRET}) as server:
        server.fault("AUTH", 454)
        with pytest.raises(AuthenticationFailed) as raised:
            await connect(EmailSettings(**server.settings()))
    assert (raised.value.code, raised.value.temporary) == (454, True)
    assert server.verbs.count("AUTH") == 1


@pytest.mark.parametrize("methods", [[], ["GSSAPI"]])
async def test_a_server_without_a_usable_method_is_a_permanent_failure(methods: list[str]) -> None:
    with (
        SmtpServer(users={"me": SECRET}, auth_methods=methods) as server,
        pytest.raises(AuthenticationFailed, match='EMAIL\\["username"\\] is set') as raised,
    ):
        await connect(EmailSettings(**server.settings()))
    assert not raised.value.temporary


class ClearChannel:
    """A transport without TLS to an address that no test may connect to."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get_extra_info(self, name: str) -> object:
        return (self._address, 25) if name == "peername" else None


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "fe80::7%eth0"])
async def test_a_password_is_never_sent_in_clear_text_to_another_machine(address: str) -> None:
    """Check the connection's real address; the settings check only the host name."""
    client = aiosmtplib.SMTP()
    client.transport = ClearChannel(address)  # type: ignore[assignment]
    settings = EmailSettings(host="localhost", username="me", password=SECRET)
    with pytest.raises(AuthenticationFailed, match="clear text") as raised:
        await authenticate(client, settings, "mail.example:25")
    assert not raised.value.temporary


async def test_a_host_name_that_could_add_a_command_is_not_sent_in_ehlo() -> None:
    with SmtpServer() as server:
        settings = EmailSettings(**server.settings()).model_copy(update={"local_hostname": "me\r\nMAIL FROM:<a@b>"})
        with pytest.raises(ImproperlyConfigured, match="local_hostname"):
            await connect(settings)
    assert "EHLO" not in server.verbs


ECHOES = ["535 wrong: {line}", "535 {secret}", "550-{line}\r\n550 {line}", "{line}", "454 {line} again"]


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("method", ["PLAIN", "LOGIN", "XOAUTH2"])
async def test_a_secret_that_the_server_echoes_is_in_no_error_log_or_traceback(
    echo: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []

    async def converse(peer: Peer) -> None:
        await greet(peer, f"AUTH {method}")
        while True:
            line = (await peer.line()).decode()
            lines.append(line.rpartition(" ")[2])
            if method == "LOGIN" and len(lines) == 1:
                await peer.say(b"334 UGFzc3dvcmQ6")
                continue
            await peer.say(echo.format(line=line, secret=SECRET).encode())

    token = {"xoauth2_token": SECRET} if method == "XOAUTH2" else {"password": SECRET}
    caplog.set_level(logging.DEBUG)
    async with raw_server(converse) as port:
        with pytest.raises(ConnectionFailed) as raised:
            await send_over(EmailSettings(host="127.0.0.1", port=port, username="me", **token))
    shown = [*traceback.format_exception(raised.value), caplog.text]
    shown += [repr(value) for error in _chain(raised.value) for value in _locals(error)]
    told = "\n".join(shown)
    assert SECRET not in told
    assert not [line for line in lines if line != "me" and len(line) > 4 and line in told]


def _chain(error: BaseException | None) -> list[BaseException]:
    errors = []
    while error is not None:
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors


def _locals(error: BaseException) -> list[object]:
    frames = traceback.walk_tb(error.__traceback__)
    return [
        value
        for frame, _ in frames
        if "/openviper/" in frame.f_code.co_filename or "/aiosmtplib/" in frame.f_code.co_filename
        for value in frame.f_locals.values()
    ]


async def test_a_missing_greeting_times_out() -> None:
    with SmtpServer() as server:
        server.fault("greeting", "silence")
        with pytest.raises(DeliveryTimeout, match="greeting"):
            await connect(EmailSettings(**server.settings(timeout=1.0)))


# Host names of several addresses (RFC 8305)


def resolve_to(monkeypatch: pytest.MonkeyPatch, port: int, *hosts: str) -> None:
    """Let the system's resolver return ``hosts`` for every name."""
    answers = [
        (socket.AF_INET6, 1, 6, "", (host, port, 0, 0)) if ":" in host else (socket.AF_INET, 1, 6, "", (host, port))
        for host in hosts
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
@pytest.mark.parametrize("silent_host", ["::1", "127.0.0.9", None])
def test_the_address_that_answers_is_used_with_the_certificate_of_the_name(
    tls: Tls, run: Callable[[Coroutine[Any, Any, None]], None], silent_host: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmtpServer(tls=tls, users={"me": SECRET}) as server, contextlib.ExitStack() as stack:
        hosts = ["127.0.0.1"]
        if silent_host is not None:
            stack.enter_context(silent(silent_host, server.port))
            hosts.insert(0, silent_host)
        resolve_to(monkeypatch, server.port, *hosts)
        run(send_one(server, host="localhost"))
        assert server.connections == 1
        with pytest.raises(AuthenticationFailed):
            run(send_one(server, host="localhost", password="another"))
        resolve_to(monkeypatch, server.port, "127.0.0.1")
        if tls != "none":
            with pytest.raises(ConnectionFailed, match="certificate"):
                run(send_one(server, host="another.example"))


@pytest.mark.parametrize("fault", ["drop", "reset", 421, "garbage"])
@pytest.mark.parametrize("verb", ["connect", "greeting", "EHLO"])
@pytest.mark.parametrize("tls", ["none", "implicit"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_failed_handshake_with_a_name_leaves_no_socket(
    run: Callable[[Coroutine[Any, Any, None]], None],
    tls: Tls,
    verb: str,
    fault: str | int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with SmtpServer(tls=tls) as server:
        resolve_to(monkeypatch, server.port, "127.0.0.2", "127.0.0.1")
        server.fault(verb, "drop" if verb == "connect" else fault)
        with pytest.raises(ConnectionFailed):
            run(send_one(server, host="localhost"))
        server.wait_until(lambda: server.open_connections == 0)
        gc.collect()  # a socket that is left open is a ResourceWarning, and that an error


async def test_the_error_lists_each_address_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with SmtpServer() as server:
        port = server.port
    resolve_to(monkeypatch, port, "127.0.0.1", "127.0.0.2")
    settings = EmailSettings(host="mail.test", port=port)
    refused = r"^mail\.test:\d+: connecting: 127\.0\.0\.1: Connection refused, 127\.0\.0\.2: Connection refused$"
    with pytest.raises(ConnectionFailed, match=refused) as raised:
        await connect(settings)
    assert raised.value.temporary
    with silent("127.0.0.2", port):
        slow = r"connecting: 127\.0\.0\.1: Connection refused, 127\.0\.0\.2: no answer$"
        with pytest.raises(DeliveryTimeout, match=slow) as timed_out:
            await connect(settings.model_copy(update={"timeout": 1.0}))
        assert timed_out.value.temporary
