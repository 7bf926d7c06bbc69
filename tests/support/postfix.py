"""A real Postfix on loopback, with a configuration, queue and mailbox of its own.

::

    with Postfix() as postfix:
        settings = EmailSettings(**postfix.settings())              # PIPELINING and CHUNKING
        settings = EmailSettings(**postfix.settings("pipelining"))  # CHUNKING switched off
        settings = EmailSettings(**postfix.settings("nothing"))     # both switched off
        ...
        stored = await postfix.arrive(3)                            # the files of the mailbox, as bytes with LF

It takes mail for anyone at example.com but ``gone@example.com`` (554), rejects bare newlines, and offers STARTTLS with
a certificate that ``certificates.ca_file()`` vouches for. It must be started by root, as every Postfix.
``connection_limit``: more at a time from one address get 421; 0 allows any number.
"""

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pytest

from support.certificates import ca_file, write_server_certificate
from support.maildir import Maildir, StoredMessage
from support.patience import PATIENCE

__all__ = ["Offer", "Postfix"]

Offer = Literal["chunking", "pipelining", "nothing"]

_DISCARDED: dict[Offer, str] = {
    "chunking": "silent-discard",
    "pipelining": "silent-discard,chunking",
    "nothing": "silent-discard,chunking,pipelining",
}

_MAIN = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log/mail.log
maillog_file_prefixes = {base}
mail_owner = postfix
setgid_group = postdrop
myhostname = mail.test.example
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
default_transport = error:nothing leaves this machine
disable_dns_lookups = yes
smtpd_peername_lookup = no
biff = no
in_flow_delay = 0
message_size_limit = 60000000
virtual_mailbox_limit = 0
virtual_mailbox_domains = example.com
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
local_header_rewrite_clients =
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_recipient_access inline:{{ {{ gone@example.com = REJECT no such user }} }}
smtpd_forbid_bare_newline = yes
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = {connection_limit}
smtpd_client_event_limit_exceptions =
smtpd_tls_security_level = may
smtpd_tls_chain_files = {base}/certificate.pem
"""

_SERVICES = """\
cleanup    unix  n - n - 0 cleanup
qmgr       unix  n - n 300 1 qmgr
tlsmgr     unix  - - n 1000? 1 tlsmgr
rewrite    unix  - - n - - trivial-rewrite
bounce     unix  - - n - 0 bounce
defer      unix  - - n - 0 bounce
trace      unix  - - n - 0 bounce
verify     unix  - - n - 1 verify
flush      unix  n - n 1000? 0 flush
proxymap   unix  - - n - - proxymap
error      unix  - - n - - error
retry      unix  - - n - - error
virtual    unix  - n n - - virtual
anvil      unix  - - n - 1 anvil
showq      unix  n - n - - showq
postlog    unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """See the module's docstring."""

    host = "127.0.0.1"
    refusal_code = 554

    def __init__(self, connection_limit: int = 0) -> None:
        self._connection_limit = connection_limit
        self.ports: dict[Offer, int] = {}

    def settings(self, offer: Offer = "chunking", **more: Any) -> dict[str, Any]:
        """EMAIL settings for this server, with ``more`` of them."""
        values = {"host": self.host, "port": self.ports[offer], "tls_ca_file": str(ca_file()), "timeout": 3 * PATIENCE}
        return values | more

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self._base / "log" / "mail.log").read_text(errors="replace")

    def take(self, deliveries: int) -> list[StoredMessage]:
        """Wait for messages to so many recipients that were not taken yet, and return them."""
        return self._maildir.take(deliveries)

    def stored(self) -> list[bytes]:
        """The messages in the mailbox, in the order of their delivery."""
        return [file.read_bytes() for file in sorted(self._files(), key=lambda file: file.stat().st_mtime_ns)]

    async def arrive(self, count: int, timeout: float = PATIENCE) -> list[bytes]:
        """Wait for ``count`` messages in the mailbox; returns all there are."""
        return await asyncio.to_thread(self.wait_for, count, timeout)

    def wait_for(self, count: int, timeout: float = PATIENCE) -> list[bytes]:
        """``arrive`` outside of a loop."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if len(self._files()) >= count:
                return self.stored()
            time.sleep(0.02)
        raise AssertionError(f"{len(self.stored())} of {count} messages arrived:\n{self.log[-3000:]}")

    def __enter__(self) -> Self:
        program = shutil.which("postfix", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            pytest.skip("postfix is not installed (apt-get install postfix)")
        if os.geteuid() != 0:
            pytest.skip("postfix can be started by root only")
        self._program = program
        self._base = Path(tempfile.mkdtemp(prefix="postfix-", dir="/tmp"))
        self._base.chmod(0o755)
        self._maildir = Maildir(self._base / "mail" / "all", lambda: self.log)
        try:
            self._configure()
            self._run("start")
            self._await_ports()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._run("stop")
        finally:
            self._remove()

    def _files(self) -> list[Path]:
        folder = self._base / "mail" / "all" / "new"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _configure(self) -> None:
        owner = pwd.getpwnam("postfix")
        for name in ("etc", "queue", "data", "log", "mail"):
            (self._base / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self._base / name, owner.pw_uid, owner.pw_gid)
        write_server_certificate(self._base / "certificate.pem")
        self.ports = dict(zip(_DISCARDED, _free_ports(len(_DISCARDED)), strict=True))
        listeners = "".join(
            f"{self.host}:{self.ports[offer]} inet n - n - - smtpd -o smtpd_discard_ehlo_keywords={discarded}\n"
            for offer, discarded in _DISCARDED.items()
        )
        main = _MAIN.format(
            base=self._base, uid=owner.pw_uid, gid=owner.pw_gid, connection_limit=self._connection_limit
        )
        (self._base / "etc" / "main.cf").write_text(main)
        (self._base / "etc" / "master.cf").write_text(listeners + _SERVICES)

    def _run(self, command: str) -> None:
        done = subprocess.run(
            [self._program, "-c", str(self._base / "etc"), command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            text=True,
        )
        assert done.returncode == 0, f"postfix {command}: {done.stdout}"

    def _await_ports(self) -> None:
        end = time.monotonic() + PATIENCE
        for port in self.ports.values():
            while True:
                try:
                    socket.create_connection((self.host, port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < end, "postfix does not listen"
                    time.sleep(0.02)

    def _remove(self) -> None:
        shutil.rmtree(self._base, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]
