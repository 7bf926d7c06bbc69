"""Access to the staff page."""

import base64
import binascii
import ipaddress
import secrets

from openviper import HTTPException, Request
from openviper.conf import settings

__all__ = ["require_staff"]


def require_staff(request: Request) -> None:
    """Allow staff only: anyone on this machine if DEBUG is on, else by SHOP_STAFF_PASSWORD (HTTP Basic).

    Raises:
        HTTPException: 401 the password is missing or wrong; 403 none is set, so the page is closed.
    """
    if settings.DEBUG and _on_this_machine(request):
        return
    if not settings.SHOP_STAFF_PASSWORD:
        raise HTTPException(403, "The staff page is closed. Set SHOP_STAFF_PASSWORD to open it.")
    given = _password(request.headers.get("authorization", ""))
    if not secrets.compare_digest(given.encode(), settings.SHOP_STAFF_PASSWORD.encode()):
        raise HTTPException(
            401, "Please sign in as staff.", headers={"WWW-Authenticate": 'Basic realm="staff", charset="UTF-8"'}
        )


def _on_this_machine(request: Request) -> bool:
    # The Host header too: a foreign page may point its own host name at 127.0.0.1 (DNS rebinding).
    return request.client is not None and _is_loopback(request.client.host) and _is_loopback(request.url.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _password(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
