"""A real OpenSMTPD that delivers into a Maildir, a file for each recipient; without TLS and AUTH.

Debian 12 has version 6.8.0p2, whose TLS handshake fails with OpenSSL 3 (internal error, whatever the kind of key), and
which offers AUTH over TLS only.
It takes mail for anyone but ``gone@example.com`` (550).
"""

from support.maildir import Maildir, StoredMessage
from support.unpacked import UnpackedServer

__all__ = ["OpenSmtpd"]

_CONFIGURATION = """\
table everybody {{ "@" = "vmail" }}
table nobody {{ "gone@example.com" }}
smtp max-message-size 60M
listen on 127.0.0.1 port {port} hostname mail.test.example
action "files" maildir "/mail" virtual <everybody>
match from any for any rcpt-to <nobody> reject
match from any for any action "files"
"""


class OpenSmtpd(UnpackedServer):
    """See the module's docstring."""

    name = "opensmtpd"
    programs = ("usr/sbin/smtpd", "usr/libexec/opensmtpd/*", "usr/sbin/smtpctl")
    arguments = ("-d",)
    users = ("opensmtpd", "opensmtpq", "vmail")

    def configure(self) -> None:
        """Write the configuration where Debian's OpenSMTPD looks for it."""
        self._maildir = Maildir(self.folder("/mail", "vmail"), lambda: self.log)
        self.folder("/var/lib/opensmtpd/empty")
        self.folder("/var/spool", mode=0o711)
        self.write("/etc/smtpd.conf", _CONFIGURATION.format(port=self.port))
        self.write("/etc/mailname", "mail.test.example\n")

    def take(self, deliveries: int) -> list[StoredMessage]:
        """See the base class."""
        return self._maildir.take(deliveries)
