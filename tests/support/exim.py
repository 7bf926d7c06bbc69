"""A real Exim, with CHUNKING, that delivers into a Maildir.

::

    with Exim() as exim:
        settings = EmailSettings(**exim.settings())
        settings = EmailSettings(**exim.settings(**exim.login()))
        ...
        (stored,) = exim.take(1)                  # one file a message, whatever the number of its recipients

It takes mail for anyone but ``gone@example.com`` (550). ``connection_limit``: more at a time from one address get 421.
"""

from support.maildir import Maildir, StoredMessage
from support.unpacked import UnpackedServer

__all__ = ["Exim"]

_CONFIGURATION = """\
primary_hostname = mail.test.example
exim_user = Debian-exim
exim_group = Debian-exim
deliver_drop_privilege
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim4/%slog
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
host_lookup =
rfc1413_query_timeout = 0s
message_size_limit = 60M
recipients_max = 0
smtp_accept_max = 100
smtp_accept_max_per_host = {connection_limit}
smtp_accept_queue_per_connection = 0
chunking_advertise_hosts = *
smtputf8_advertise_hosts = *
auth_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = /etc/certificate.pem
tls_privatekey = /etc/certificate.pem
acl_smtp_rcpt = rcpt

begin acl
rcpt:
  deny local_parts = gone
       message = no such user
  accept

begin routers
all:
  driver = accept
  transport = files

begin transports
files:
  driver = appendfile
  maildir_format
  directory = /mail
  create_directory
  batch_max = 1000
  envelope_to_add
  return_path_add
  user = Debian-exim

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{username}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{{username}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{{username}}}{{{password}}}fail}}
  server_set_id = $auth1
"""


class Exim(UnpackedServer):
    """See the module's docstring."""

    name = "exim"
    programs = ("usr/sbin/exim4",)
    arguments = ("-bdf", "-q1h")
    users = ("Debian-exim",)

    def __init__(self, connection_limit: int = 0) -> None:
        super().__init__()
        self._connection_limit = connection_limit

    def configure(self) -> None:
        """Write the configuration where Debian's Exim looks for it."""
        self._maildir = Maildir(self.folder("/mail", "Debian-exim"), lambda: self.log)
        self.folder("/var/spool/exim4", "Debian-exim")
        self.folder("/var/log/exim4", "Debian-exim")
        # Exim gives up root before it reads the key.
        certificate = self.root / "etc" / "certificate.pem"
        certificate.chmod(0o644)
        self.write(
            "/etc/exim4/exim4.conf",
            _CONFIGURATION.format(
                port=self.port,
                connection_limit=self._connection_limit,
                username=self.username,
                password=self.password,
            ),
        )

    def take(self, deliveries: int) -> list[StoredMessage]:
        """See the base class."""
        return self._maildir.take(deliveries)

    def failed_logins(self, at_least: int = 0) -> int:
        """Wait until the log has so many, and return how many it has."""
        main_log = self.root / "var" / "log" / "exim4" / "mainlog"
        return self.wait_for(lambda: main_log.read_text().count(" authenticator failed "), at_least)
