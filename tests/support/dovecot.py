"""A real Dovecot submission service, which passes mail on to a recording ``SmtpServer``, its relay.

::

    with Dovecot() as dovecot:
        settings = EmailSettings(**dovecot.settings(**dovecot.login()))
        ...
        (stored,) = dovecot.take(1)

It takes mail of users who are logged in, for anyone but ``gone@example.com`` (550). ``connection_limit``: more at
a time of one user from one address are refused at AUTH.
"""

import re
from types import TracebackType
from typing import Self

from support.maildir import StoredMessage
from support.smtpd import ReceivedMessage, SmtpServer
from support.unpacked import UnpackedServer

__all__ = ["Dovecot"]

_FAILED = re.compile(r"auth failed, (\d+) attempts")

_CONFIGURATION = """\
protocols = submission
listen = 127.0.0.1
base_dir = /run/dovecot
log_path = /var/log/dovecot.log
default_internal_user = dovecot
default_internal_group = dovecot
default_login_user = dovenull
hostname = mail.test.example
ssl = yes
ssl_cert = </etc/certificate.pem
ssl_key = </etc/certificate.pem
disable_plaintext_auth = no
auth_mechanisms = plain login
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid=vmail gid=vmail home=/mail
}}
mail_location = maildir:/mail
mail_max_userip_connections = {connection_limit}
submission_relay_host = 127.0.0.1
submission_relay_port = {relay_port}
submission_relay_trusted = no
submission_max_mail_size = 60M
service submission-login {{
  inet_listener submission {{
    port = {port}
  }}
}}
"""


class Dovecot(UnpackedServer):
    """See the module's docstring."""

    name = "dovecot"
    programs = ("usr/sbin/dovecot", "usr/lib/dovecot/*", "usr/lib/dovecot/modules/libssl*.so")
    arguments = ("-F",)
    users = ("dovecot", "dovenull", "vmail")
    password = "correct-horse"

    def __init__(self, connection_limit: int = 100) -> None:
        super().__init__()
        self._connection_limit = connection_limit
        self.relay = SmtpServer()
        self._taken = 0

    def configure(self) -> None:
        """Write the configuration where Debian's Dovecot looks for it."""
        self.relay.refuse("gone@example.com", 550)
        self.folder("/mail", "vmail")
        self.folder("/run/dovecot")
        self.write(
            "/etc/dovecot/dovecot.conf",
            _CONFIGURATION.format(
                port=self.port,
                relay_port=self.relay.port,
                connection_limit=self._connection_limit,
                password=self.password,
            ),
        )

    def take(self, deliveries: int) -> list[StoredMessage]:
        """See the base class."""
        self.relay.wait_until(lambda: sum(len(each.recipients) for each in self._new()) >= deliveries)
        found = [StoredMessage.of(message.content, message.recipients) for message in self._new()]
        self._taken += len(found)
        return found

    def failed_logins(self, at_least: int = 0) -> int:
        """Wait until the log has so many, and return how many it has; they are logged when the client has left."""
        return self.wait_for(lambda: sum(map(int, _FAILED.findall(self.log))), at_least)

    def _new(self) -> list[ReceivedMessage]:
        return self.relay.messages[self._taken :]

    def __enter__(self) -> Self:
        self.relay.__enter__()
        try:
            return super().__enter__()
        except BaseException:
            self.relay.stop()
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(exc_type, exc, traceback)
        finally:
            self.relay.stop()
