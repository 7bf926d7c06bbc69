"""Check an attachment's URL: scheme, host, port and credentials."""

import base64
import re
from dataclasses import dataclass, field

import httpx

from openviper.core.email.attachments.netguard import HostRefused, check_host
from openviper.core.email.errors import AttachmentRefused
from openviper.text import CONTROLS, shown

__all__ = ["UrlTarget", "parse_target", "redirected"]

_PORTS = {"http": 80, "https": 443}
_REFUSED = re.compile(rf"[{CONTROLS}\\]|^\s|\s$")


@dataclass(frozen=True, slots=True)
class UrlTarget:
    """One hop. ``host`` is in the spelling of ``check_host``; ``authorization`` is a header's value, or None."""

    url: httpx.URL
    host: str
    port: int
    authorization: str | None = field(repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return the origin that credentials belong to (RFC 6454): scheme, host and port."""
        return self.url.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """Return the value of the Host header, with the port unless it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.url.scheme] else f"{host}:{self.port}"


def parse_target(url: str | httpx.URL, filename: str) -> UrlTarget:
    """Return the target of ``url``; errors call the attachment ``filename``.

    Raises:
        AttachmentRefused: not a URL that may be fetched. Its text has neither credentials nor query.
    """
    if isinstance(url, str) and _REFUSED.search(url):
        raise AttachmentRefused(filename, "the URL has a control character, a backslash, or spaces around it")
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        # Not chained: the parser's text quotes parts of the URL, which may be a password.
        raise AttachmentRefused(filename, "the URL is not valid") from None
    if parsed.scheme not in _PORTS:
        raise AttachmentRefused(filename, f"the scheme {shown(parsed.scheme)} is not allowed; use http or https")
    port = _PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if not 0 < port < 65536:
        raise AttachmentRefused(filename, f"the URL has no valid port: {port}")
    try:
        host = check_host(host)
    except HostRefused as error:
        raise AttachmentRefused(filename, f"the host {error}") from None
    return UrlTarget(parsed, host, port, _basic_authorization(parsed))


def redirected(source: UrlTarget, status: int, location: str | None, filename: str) -> UrlTarget:
    """Return the target of a redirect from ``source``; credentials are kept for the same origin only.

    Raises:
        AttachmentRefused: ``location`` is missing, may not be fetched, or leads from https to http.
    """
    if not location:
        raise AttachmentRefused(filename, f"{source.host} answered {status} without a Location")
    try:
        joined = source.url.join(location)
    except (httpx.InvalidURL, ValueError):
        raise AttachmentRefused(filename, f"{source.host} redirected to a URL that is not valid") from None
    target = parse_target(joined, filename)
    if source.url.scheme == "https" and target.url.scheme != "https":
        raise AttachmentRefused(filename, f"{source.host} redirected from https to http")
    authorization = source.authorization if target.origin == source.origin else None
    return UrlTarget(target.url, target.host, target.port, authorization)


def _basic_authorization(url: httpx.URL) -> str | None:
    if not url.userinfo:
        return None
    credentials = f"{url.username}:{url.password}".encode()
    return "Basic " + base64.b64encode(credentials).decode("ascii")
