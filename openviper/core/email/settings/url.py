"""Read ``EMAIL["url"]``, a mail server in one line: scheme, user, password, host, port and further settings.

No text of a fault shows a value, since any part of a wrong URL may belong to the password.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from openviper.conf.kinds import SettingKind
from openviper.text import control_character, shown, suggestion

__all__ = ["SCHEMES", "read_url"]

SCHEMES: dict[str, dict[str, Any]] = {
    "smtp": {"use_tls": False, "use_ssl": False},
    "smtp+tls": {"use_tls": True, "use_ssl": False},
    "smtps": {"use_tls": False, "use_ssl": True},
}

_BY_URL = {
    **dict.fromkeys(("use_tls", "use_ssl"), "its scheme, smtp+tls:// or smtps://"),
    **dict.fromkeys(("host", "port", "username", "user", "password"), "its place before the query"),
}
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


def read_url(url: str, kinds: Mapping[str, SettingKind], allowed: Collection[str]) -> dict[str, Any]:
    """Return the settings that ``url`` gives; a port that it leaves out is missing, and follows from the scheme.

    ``url`` has no control character. ``kinds`` are those of all settings, ``allowed`` the names that its query may
    have.

    Raises:
        ValueError: it is no such URL; the text completes "EMAIL["url"]: ".
    """
    no_url = f"is not the URL of a mail server; give one that begins with {', '.join(f'{name}://' for name in SCHEMES)}"
    if any(character.isspace() for character in url):
        raise ValueError("has a space; write it percent-encoded, %20")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(no_url) from None
    if parts.scheme not in SCHEMES or "://" not in url:
        raise ValueError(no_url)
    if "#" in url or "@" in parts.path + parts.query or parts.netloc.count("@") > 1:
        raise ValueError(
            "has a '#', a second '@', or a '/' or '?' before its '@'; in a user name or password write %23, %40, %2F "
            "and %3F for them"
        )
    if parts.path not in ("", "/"):
        raise ValueError("has a path, which a mail server does not have; leave it out")
    values = {**SCHEMES[parts.scheme], **_server(parts)}
    return values | _query(parts.query, kinds, allowed)


def _server(parts: SplitResult) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a port that is not a number from 1 to 65535") from None
    if not host:
        raise ValueError("names no host; write smtp://host")
    if any(character in host for character in "%\\,;=&"):
        raise ValueError("has a host that is neither a name nor an IP address")
    values["host"] = host
    if port is not None:
        if port == 0:
            raise ValueError("has a port that is not a number from 1 to 65535")
        values["port"] = port
    userinfo, at, _ = parts.netloc.rpartition("@")
    if at:
        user, _, password = userinfo.partition(":")
        if user:
            values["username"] = _decoded(user)
        if password:
            values["password"] = SecretStr(_decoded(password))
    return values


def _decoded(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise ValueError("has a '%' in its user name or password that encodes nothing; write %25")
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("has a user name or password that is not UTF-8 when it is percent-decoded") from None
    if control_character(decoded):
        raise ValueError("has a control character in its user name or password")
    return decoded


def _query(query: str, kinds: Mapping[str, SettingKind], allowed: Collection[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in _BY_URL:
            raise ValueError(f"has the parameter {name}; give it by {_BY_URL[name]}")
        if name not in allowed:
            named = f"the parameter {shown(name)}" if _NAME.fullmatch(name) else "a parameter"
            near = suggestion(name, allowed, otherwise="the settings reference lists those of a mailer")
            raise ValueError(f"has {named}, which is not a setting of a mailer{near}")
        if name in values:
            raise ValueError(f"has the parameter {name} twice; keep one")
        kind = kinds[name]
        values[name] = SecretStr(text) if kind.secret else kind.read(text)
    return values
