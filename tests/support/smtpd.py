"""A real SMTP server on loopback for tests: it records what it is sent, and misbehaves when told to.

It runs in a thread and a loop of its own, so tests of any loop and of other processes can use it::

    with SmtpServer() as server:                       # PIPELINING, CHUNKING, SIZE, SMTPUTF8, 8BITMIME; no TLS
        await send_to(server.host, server.port)        # or server.settings() as EMAIL in this or another process
        (message,) = await server.arrive(1)            # or server.wait_for(1) outside a loop
        assert message.recipients == ["a@example.com"]

TLS: ``SmtpServer(tls="starttls")`` or ``tls="implicit"`` with ``certificate="trusted"`` (trust ``server.ca_file``),
``"untrusted"``, ``"self-signed"``, ``"wrong-host"`` or ``"expired"``. AUTH: ``users={"name": "password"}``.

Misbehaviour is told before or during the test and is matched in the order told::

    server.fault("MAIL", 421)                          # answers 421 and hangs up, each time
    server.fault("RCPT", 450, nth=2)                   # the second RCPT of the server's life only
    server.fault("body", "drop")                       # hangs up when the whole message has come
    server.fault("EHLO", "silence"); server.fault("DATA", "garbage"); server.fault("MAIL", "250 ok\\r\\n250 twice")
    server.refuse("gone@example.com", 550)             # one recipient
    server.delay("greeting", 0.5); server.delay("body", 0.2)
    gate = server.hold("body"); ...; gate.release()    # answers only when the test says so

Verbs are the commands, and "connect" (before TLS and greeting), "greeting" and "body" (after the last byte of the
message). Never poll with sleep: ``arrive``/``wait_for`` wait for messages, ``seen`` for a command, and
``gate.wait`` for the moment a held command is reached.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default as default_policy
from types import TracebackType
from typing import Any, Literal, Self

from support.certificates import CertificateKind, ca_file, server_context
from support.patience import PATIENCE

__all__ = ["CAPABILITIES", "Command", "Gate", "ReceivedMessage", "SmtpServer", "Tls"]

Tls = Literal["none", "starttls", "implicit"]

CAPABILITIES = ("PIPELINING", "CHUNKING", "SIZE 104857600", "SMTPUTF8", "8BITMIME")

_PATH = re.compile(r"(?:FROM|TO):\s*<([^>]*)>\s*(.*)", re.IGNORECASE)
_GARBAGE = "\x00\x01this is no SMTP"


@dataclass(frozen=True)
class Command:
    """A command as the server read it; ``at`` is ``time.monotonic()``."""

    connection: int
    verb: str
    line: str
    at: float


@dataclass
class ReceivedMessage:
    """A message that the server accepted. ``content`` is without dot-stuffing, ``options`` those of MAIL."""

    sender: str
    recipients: list[str]
    content: bytes
    connection: int
    options: str
    via: Literal["DATA", "BDAT"]
    tls: bool
    user: str | None
    at: float = field(default_factory=time.monotonic)

    def parse(self) -> EmailMessage:
        """The message as the standard library reads it."""
        return BytesParser(policy=default_policy).parsebytes(self.content)


class Gate:
    """Holds an answer back until ``release``."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def release(self) -> None:
        """Let the held answer, and every later one, go."""
        self._open.set()

    def wait(self, timeout: float = PATIENCE) -> None:
        """Block until a client has reached the held step; from a coroutine use ``reached``."""
        assert self._reached.wait(timeout), "no client reached the held step"

    async def reached(self, timeout: float = PATIENCE) -> None:
        """Wait until a client has reached the held step."""
        await asyncio.to_thread(self.wait, timeout)

    async def _pass(self) -> None:
        self._reached.set()
        await asyncio.to_thread(self._open.wait, PATIENCE)


Action = int | str


@dataclass
class _Rule:
    verb: str
    action: Action | Gate | float
    nth: int | None
    address: str | None = None
    met: int = 0

    def fits(self, verb: str, line: str) -> bool:
        if verb != self.verb or (self.address is not None and f"<{self.address}>" not in line):
            return False
        self.met += 1
        return self.nth is None or self.met == self.nth


class _HangUp(Exception):
    pass


class SmtpServer:
    """See the module's docstring.

    ``recipient_limit``: further recipients of a transaction get ``limit_reply``. ``recipient_reply`` and ``data_reply``
    are said to a recipient that is accepted, and to DATA. ``connection_limit``: connections beyond it meet
    ``limit_action`` at the verb ``limit_at``. ``closes_after``: messages after which a connection is closed.
    ``takes_token``: True for user and XOAUTH2 token
    that are right; None: the token is the password. ``inject_after_starttls``: clear text behind the
    answer to STARTTLS, as an attacker on the line would put there.
    """

    def __init__(
        self,
        *,
        capabilities: Sequence[str] = CAPABILITIES,
        tls: Tls = "none",
        certificate: CertificateKind = "trusted",
        users: Mapping[str, str] | None = None,
        auth_methods: Sequence[str] = ("PLAIN", "LOGIN"),
        recipient_limit: int | None = None,
        connection_limit: int | None = None,
        closes_after: int | None = None,
        takes_token: Callable[[str, str], bool] | None = None,
        limit_at: str = "greeting",
        limit_action: Action = 421,
        inject_after_starttls: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        self.capabilities = tuple(capabilities)
        self.tls = tls
        self.certificate: CertificateKind = certificate
        self.users = dict(users or {})
        self.auth_methods = tuple(auth_methods)
        self.recipient_limit = recipient_limit
        self.limit_reply = "452 4.5.3 too many recipients"
        self.recipient_reply = "250 2.1.5 ok"
        self.data_reply = "354 go ahead"
        self.connection_limit = connection_limit
        self.closes_after = closes_after
        self.takes_token = takes_token
        self.limit_at = limit_at
        self.limit_action = limit_action
        self.inject_after_starttls = inject_after_starttls
        self.host = host
        self.port = 0
        self.ca_file = ca_file()
        self.messages: list[ReceivedMessage] = []
        self.commands: list[Command] = []
        self.connections = 0
        self.open_connections = 0
        self.most_open = 0
        self.admitted = 0  # open connections within the limit
        self.most_admitted = 0
        self._rules: list[_Rule] = []
        self._changed = threading.Condition()
        self._sessions: set[asyncio.Task[None]] = set()

    # What a test says and asks

    def settings(self, **more: Any) -> dict[str, Any]:
        """EMAIL settings for this server, with ``more`` of them."""
        user, password = next(iter(self.users.items()), (None, None))
        values: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "use_tls": self.tls == "starttls",
            "use_ssl": self.tls == "implicit",
            "timeout": 3 * PATIENCE,  # no step is given up before the test is
        }
        if user is not None:
            values |= {"username": user, "password": password}
        if self.tls != "none":
            values["tls_ca_file"] = str(self.ca_file)
        return values | more

    def fault(self, verb: str, action: Action, *, nth: int | None = None, address: str | None = None) -> None:
        """Misbehave at ``verb``: "drop", "reset", "silence", "garbage", a code, or a literal reply.

        ``nth``: only at the nth time that this verb is met from now on; None: each time. ``address``: only at "RCPT" or
        "body" for this recipient.
        """
        self._rules.append(_Rule(verb, action, nth, address))

    def refuse(self, address: str, code: int, *, nth: int | None = None) -> None:
        """Answer ``code`` to RCPT for this recipient."""
        self.fault("RCPT", code, nth=nth, address=address)

    def delay(self, verb: str, seconds: float, *, nth: int | None = None) -> None:
        """Wait before acting on ``verb``."""
        self._rules.append(_Rule(verb, float(seconds), nth))

    def hold(self, verb: str, *, nth: int | None = None) -> Gate:
        """Hold back what follows ``verb`` until the returned gate is released."""
        gate = Gate()
        self._rules.append(_Rule(verb, gate, nth))
        return gate

    def behave(self) -> None:
        """Forget every fault, refusal, delay and gate."""
        self._rules.clear()

    @property
    def verbs(self) -> list[str]:
        """The verbs of all commands so far, in order."""
        return [command.verb for command in self.commands]

    def wait_until(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Block until ``condition()``, looked at whenever something happens on the server."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"did not happen; commands: {self.verbs[-20:]}"

    async def until(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """``wait_until`` for coroutines."""
        await asyncio.to_thread(self.wait_until, condition, timeout)

    def wait_for(self, count: int, timeout: float = PATIENCE) -> list[ReceivedMessage]:
        """Block until ``count`` messages have been accepted; returns all there are."""
        self.wait_until(lambda: len(self.messages) >= count, timeout)
        return list(self.messages)

    async def arrive(self, count: int, timeout: float = PATIENCE) -> list[ReceivedMessage]:
        """``wait_for`` for coroutines."""
        return await asyncio.to_thread(self.wait_for, count, timeout)

    async def seen(self, verb: str, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until ``verb`` was met ``count`` times."""
        await self.until(lambda: self.verbs.count(verb) >= count, timeout)

    def hang_up(self) -> None:
        """Close every connection, as a server does that restarts."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._sessions])
        self.wait_until(lambda: self.open_connections == 0)

    # Life

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="smtpd", daemon=True)
        self._thread.start()
        assert ready.wait(PATIENCE), "the SMTP server did not start"
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and every connection; its port then refuses connections. May be called again."""
        for rule in self._rules:
            if isinstance(rule.action, Gate):
                rule.action.release()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(PATIENCE)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(ready))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._end = asyncio.Event()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, self.port), family=family, backlog=256)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._unserved: set[socket.socket] = set()
        self._loop.add_reader(listener, self._accept, listener)
        ready.set()
        await self._end.wait()
        self._loop.remove_reader(listener)
        listener.close()
        for task in tuple(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        for connection in self._unserved:  # its task was cancelled before it began
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client has given up
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unserved.add(connection)
        task = self._loop.create_task(self._converse(connection))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _converse(self, connection: socket.socket) -> None:
        self._unserved.discard(connection)
        with self._changed:
            self.connections += 1
            self.open_connections += 1
            self.most_open = max(self.most_open, self.open_connections)
            number = self.connections
            admitted = self.connection_limit is None or self.admitted < self.connection_limit
            self.admitted += admitted
            self.most_admitted = max(self.most_admitted, self.admitted)
        session = _Session(self, connection, number, admitted)
        try:
            await session.run()
        except (_HangUp, ConnectionError, EOFError, OSError, ValueError, asyncio.IncompleteReadError):
            pass  # the client or the script ended it
        finally:
            session.close()
            with self._changed:
                self.open_connections -= 1
                self.admitted -= admitted
                self._changed.notify_all()

    def _met(self, connection: int, verb: str, line: str) -> list[_Rule]:
        with self._changed:
            self.commands.append(Command(connection, verb, line, time.monotonic()))
            fitting = [rule for rule in self._rules if rule.fits(verb, line)]
            self._changed.notify_all()
        return fitting

    def _keep(self, message: ReceivedMessage) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()


class _ServerProtocol(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        super().eof_received()
        return False  # TLS knows no half-closed connection


class _Session:
    """One connection."""

    def __init__(self, server: SmtpServer, connection: socket.socket, number: int, admitted: bool) -> None:
        self._server = server
        self._admitted = admitted
        self._socket = connection
        self._number = number
        self._writer: asyncio.StreamWriter | None = None
        self._tls = False
        self._user: str | None = None
        self._greeted = False
        self._taken = 0
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._options = ""
        self._recipients: list[str] = []
        self._content = bytearray()
        self._chunking = False

    async def run(self) -> None:
        if await self._scripted("connect", ""):
            return
        await self._open_streams()
        if not await self._scripted("greeting", ""):
            await self._reply("220 test.example ESMTP")
        while True:
            line = (await self._reader.readuntil(b"\r\n"))[:-2].decode("utf-8", "surrogateescape")
            verb = line.split(" ", 1)[0].upper()
            if verb == "BDAT":
                await self._bdat(line)
                continue
            if await self._scripted(verb, line):
                continue
            handler = getattr(self, f"_on_{verb.lower()}", None)
            if handler is None:
                await self._reply("502 5.5.1 no such command")
            else:
                await handler(line)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._socket.close()

    async def _open_streams(self) -> None:
        server = self._server
        loop = asyncio.get_running_loop()
        context = server_context(server.certificate) if server.tls == "implicit" else None
        self._reader = asyncio.StreamReader(limit=2**20, loop=loop)
        self._protocol = _ServerProtocol(self._reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: self._protocol, self._socket, ssl=context)
        self._writer = asyncio.StreamWriter(transport, self._protocol, self._reader, loop)
        self._tls = context is not None

    async def _reply(self, text: str) -> None:
        assert self._writer is not None
        self._writer.write(text.encode("utf-8", "surrogateescape") + b"\r\n")
        await self._writer.drain()

    async def _scripted(self, verb: str, line: str) -> bool:
        """Act as the rules say; True when a reply was given, or none is to be."""
        if not self._admitted and verb == self._server.limit_at:
            self._server._met(self._number, verb, line)
            return await self._misbehave(self._server.limit_action)
        for rule in self._server._met(self._number, verb, line):
            action = rule.action
            if isinstance(action, Gate):
                await action._pass()
            elif isinstance(action, float):
                await asyncio.sleep(action)
            else:
                return await self._misbehave(action)
        return False

    async def _misbehave(self, action: Action) -> bool:
        if action == "reset":
            self._socket_now().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if action in ("drop", "reset"):
            await self._swallow()
            raise _HangUp
        if action == "silence":
            await asyncio.Event().wait()
        assert self._writer is not None, "before the greeting only drop, reset and silence can be told"
        if isinstance(action, int):
            await self._reply(f"{action} {action // 100}.0.0 as the test says")
            if action == 421:
                await self._leave()
            return True
        await self._reply(_GARBAGE if action == "garbage" else action)
        return True

    def _socket_now(self) -> socket.socket:
        return self._socket if self._writer is None else self._writer.get_extra_info("socket")

    async def _swallow(self) -> None:
        # Closing with unread bytes would send RST, which can destroy replies that are still on their way.
        if self._writer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reader.read(2**20), 0.01)

    async def _leave(self) -> None:
        assert self._writer is not None
        if self._writer.can_write_eof():
            self._writer.write_eof()
        # Until the client has left; over TLS it does not see that we have said all before we close.
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(10 if self._writer.can_write_eof() else 0.5):
                while await self._reader.read(2**16):
                    pass
        raise _HangUp

    # Commands

    async def _on_ehlo(self, line: str) -> None:
        server = self._server
        lines = ["test.example", *server.capabilities]
        if server.tls == "starttls" and not self._tls:
            lines.append("STARTTLS")
        if server.users:
            lines.append("AUTH " + " ".join(server.auth_methods))
        self._greeted = True
        await self._reply("\r\n".join([f"250-{text}" for text in lines[:-1]] + [f"250 {lines[-1]}"]))

    async def _on_helo(self, line: str) -> None:
        self._greeted = True
        await self._reply("250 test.example")

    async def _on_noop(self, line: str) -> None:
        await self._reply("250 2.0.0 ok")

    async def _on_starttls(self, line: str) -> None:
        assert self._writer is not None
        if self._server.tls != "starttls" or self._tls:
            await self._reply("502 5.5.1 not here")
            return
        injected = self._server.inject_after_starttls
        await self._reply("220 2.0.0 go ahead" + (f"\r\n{injected}" if injected else ""))
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            self._writer.transport, self._protocol, server_context(self._server.certificate), server_side=True
        )
        assert transport is not None
        self._writer._transport = transport  # type: ignore[attr-defined]  # start_tls of streams is for clients
        self._tls = True
        self._reset()

    async def _on_auth(self, line: str) -> None:
        if len(line.encode()) + 2 > 512:  # RFC 4954 section 4
            await self._reply("500 5.5.6 line too long")
            return
        _, method, *rest = line.split(" ")
        try:
            user, right = await self._credentials(method.upper(), rest[0] if rest else "")
        except (ValueError, KeyError):
            await self._reply("501 5.5.2 cannot be read")
            return
        if right:
            self._user = user
            await self._reply("235 2.7.0 welcome")
        else:
            await self._reply("535 5.7.8 wrong user or password")

    async def _credentials(self, method: str, initial: str) -> tuple[str, bool]:
        users = self._server.users
        if method == "PLAIN":
            _, user, password = base64.b64decode(initial or await self._ask("")).decode().split("\0")
            return user, users.get(user) == password
        if method == "LOGIN":
            user = base64.b64decode(initial or await self._ask("Username:")).decode()
            return user, users.get(user) == base64.b64decode(await self._ask("Password:")).decode()
        if method == "CRAM-MD5":
            challenge = "<1.2@test.example>"
            user, digest = base64.b64decode(await self._ask(challenge)).decode().rsplit(" ", 1)
            expected = hmac.new(users.get(user, "").encode(), challenge.encode(), hashlib.md5).hexdigest()
            return user, user in users and digest == expected
        if method == "XOAUTH2":
            text = base64.b64decode(initial or await self._ask("")).decode()
            match = re.fullmatch(r"user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01", text)
            assert match is not None
            takes = self._server.takes_token
            right = users.get(match[1]) == match[2] if takes is None else takes(match[1], match[2])
            if not right:
                await self._ask('{"status":"401"}')
            return match[1], right
        raise ValueError(method)

    async def _ask(self, text: str) -> str:
        await self._reply("334 " + base64.b64encode(text.encode()).decode())
        return (await self._reader.readuntil(b"\r\n"))[:-2].decode()

    async def _on_mail(self, line: str) -> None:
        match = _PATH.fullmatch(line.partition(" ")[2])
        if match is None:
            await self._reply("501 5.5.4 cannot be read")
        elif self._server.users and self._user is None:
            await self._reply("530 5.7.0 authenticate first")
        elif self._sender is not None or not self._greeted:
            await self._reply("503 5.5.1 not now")
        else:
            self._sender, self._options = match[1], match[2]
            await self._reply("250 2.1.0 ok")

    async def _on_rcpt(self, line: str) -> None:
        match = _PATH.fullmatch(line.partition(" ")[2])
        limit = self._server.recipient_limit
        if self._sender is None:
            await self._reply("503 5.5.1 MAIL first")
        elif match is None:
            await self._reply("501 5.5.4 cannot be read")
        elif limit is not None and len(self._recipients) >= limit:
            await self._reply(self._server.limit_reply)
        else:
            self._recipients.append(match[1])
            await self._reply(self._server.recipient_reply)

    async def _on_rset(self, line: str) -> None:
        self._reset()
        await self._reply("250 2.0.0 ok")

    async def _on_quit(self, line: str) -> None:
        await self._reply("221 2.0.0 bye")
        await self._leave()

    async def _on_data(self, line: str) -> None:
        if not self._recipients:
            await self._reply("554 5.5.1 no valid recipients" if self._sender is not None else "503 5.5.1 MAIL first")
            return
        await self._reply(self._server.data_reply)
        while (text := await self._reader.readuntil(b"\r\n")) != b".\r\n":
            self._content += text[1:] if text.startswith(b".") else text
        await self._take("DATA")

    async def _bdat(self, line: str) -> None:
        _, length, *last = line.split(" ")
        # The chunk follows its command at once, so it is read before the command is judged.
        chunk = await self._reader.readexactly(int(length))
        if await self._scripted("BDAT", line):
            self._chunking = False
            return
        if not self._recipients:
            await self._reply("503 5.5.1 no valid recipients")
            return
        self._content += chunk
        if last:
            await self._take("BDAT")
        else:
            await self._reply(f"250 2.0.0 {length} octets")

    async def _take(self, via: Literal["DATA", "BDAT"]) -> None:
        assert self._sender is not None
        message = ReceivedMessage(
            sender=self._sender,
            recipients=list(self._recipients),
            content=bytes(self._content),
            connection=self._number,
            options=self._options,
            via=via,
            tls=self._tls,
            user=self._user,
        )
        self._reset()
        if not await self._scripted("body", " ".join(f"<{each}>" for each in message.recipients)):
            self._server._keep(message)
            await self._reply("250 2.0.0 taken")
            self._taken += 1
            if self._taken == self._server.closes_after:
                await self._leave()
