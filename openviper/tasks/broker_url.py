"""Check a broker's URL with its query: client libraries find a wrong one when they connect, or ignore it.

No text shows a value, since any may be a secret; and no name where a part of the password may have become one.
"""

import ast
import math
import re
import ssl
from collections.abc import Callable, Iterable
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from openviper.text import shown, suggestion

__all__ = ["SCHEMES", "url_fault"]

SCHEMES = {"redis": ("redis", "rediss", "unix"), "rabbitmq": ("amqp", "amqps")}

_LARGEST_PORT = 65535
_TRUE_OR_FALSE = frozenset({"1", "0", "true", "false", "t", "f", "yes", "no", "y", "n"})

_Check = tuple[Callable[[str], bool], str]


def _whole(low: int, high: float = math.inf) -> _Check:
    kind = f"a whole number from {low} on" if high == math.inf else f"a whole number from {low} to {high}"
    return lambda value: re.fullmatch(r"[0-9]{1,10}", value) is not None and low <= int(value) <= high, kind


def _seconds(value: str) -> bool:
    try:
        return 0 < float(value) < math.inf
    except ValueError:
        return False


def _one_of(*values: str) -> _Check:
    return lambda value: value in values, " or ".join((", ".join(values[:-1]), values[-1]))


def _are_verify_flags(value: str) -> bool:
    names = [name.strip() for name in value.strip("[]").split(",")]
    return all(name in ssl.VerifyFlags.__members__ for name in names)


def _are_ciphers(value: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(value)
    except ssl.SSLError:
        return False
    return True


def _is_dict(value: str) -> bool:
    try:
        return isinstance(ast.literal_eval(value), dict)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


_TEXT: _Check = (bool, "not empty")
_FLAG: _Check = (lambda value: value.lower() in _TRUE_OR_FALSE, "true or false")
_DURATION: _Check = (_seconds, "seconds, more than 0")
_VERIFY_FLAGS: _Check = (_are_verify_flags, "names such as VERIFY_X509_STRICT, with commas between them")
_DICT: _Check = (_is_dict, "a dict as Python writes it")

_REDIS: dict[str, _Check] = {
    "db": _whole(0),
    "username": _TEXT,
    "password": _TEXT,
    "client_name": (lambda value: re.fullmatch(r"[!-~]+", value) is not None, "printable ASCII without spaces"),
    "health_check_interval": _whole(0),
    "max_connections": _whole(1),
    "protocol": _one_of("2", "3"),
    "socket_connect_timeout": _DURATION,
    "socket_read_size": _whole(1),
    "socket_timeout": _DURATION,
}
_TCP: dict[str, _Check] = {"socket_keepalive": _FLAG}
_TLS: dict[str, _Check] = {
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_cert_reqs": _one_of("none", "optional", "required"),
    "ssl_certfile": _TEXT,
    "ssl_check_hostname": _FLAG,
    "ssl_ciphers": (_are_ciphers, "a list of ciphers that OpenSSL has"),
    "ssl_exclude_verify_flags": _VERIFY_FLAGS,
    "ssl_include_verify_flags": _VERIFY_FLAGS,
    "ssl_keyfile": _TEXT,
    "ssl_min_version": _one_of(*(str(version.value) for version in ssl.TLSVersion if version.value > 0)),
    "ssl_password": _TEXT,
}
_AMQP: dict[str, _Check] = {
    "channel_max": _whole(1, _LARGEST_PORT),
    "client_properties": _DICT,
    "frame_max": _whole(4096, 131072),
    "heartbeat": _whole(0, _LARGEST_PORT),
    "locale": _TEXT,
    "ssl_options": _DICT,
    "tcp_options": _DICT,
}
_PARAMETERS = {
    "redis": _REDIS | _TCP,
    "rediss": _REDIS | _TCP | _TLS,
    "unix": _REDIS,
    "amqp": {name: check for name, check in _AMQP.items() if name != "ssl_options"},
    "amqps": _AMQP,
}


def url_fault(url: str, broker: str) -> str | None:
    """Return what is wrong with the URL of ``broker`` ("redis" or "rabbitmq"); None if nothing is."""
    schemes = " or ".join(f"{scheme}://" for scheme in SCHEMES[broker])
    no_url = f"is not a URL for {broker}; give one that begins with {schemes}"
    try:
        parts = urlsplit(url)
    except ValueError:
        return no_url
    if parts.scheme not in SCHEMES[broker] or "://" not in url:
        return no_url
    if "#" in url or "@" in parts.path + parts.query:
        return "has a '#', or a '/' or '?' before its '@'; in a user name or password write %23, %2F and %3F for them"
    return _place_fault(parts) or _query_fault(parts)


def _place_fault(parts: SplitResult) -> str | None:
    try:
        _ = parts.port
    except ValueError:
        return f"has a port that is not a number from 0 to {_LARGEST_PORT}"
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            return "names no socket; write unix:///path/of/the/socket"
    elif parts.scheme in ("redis", "rediss"):
        database = unquote(parts.path).strip("/")
        if database and not re.fullmatch(r"[0-9]{1,10}", database):
            return "has a path that is not the number of a database, such as redis://localhost:6379/0"
    return None


def _query_fault(parts: SplitResult) -> str | None:
    known = _PARAMETERS[parts.scheme]
    met: set[str] = set()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            return _unknown(name, parts.scheme, known)
        if name in met:
            return f"has the parameter {name} twice"
        met.add(name)
        fits, kind = known[name]
        if not fits(value):
            return f"has a wrong value for the parameter {name}; it is {kind}"
    return None


def _unknown(name: str, scheme: str, known: Iterable[str]) -> str:
    for other in SCHEMES["redis"] + SCHEMES["rabbitmq"]:
        if name in _PARAMETERS[other] and other.startswith(scheme):
            return f"has the parameter {name}, which belongs to {other}://"
    hint = suggestion(name, known, otherwise=f"there are {', '.join(sorted(known))}")
    return f"has the parameter {shown(name)}, which is unknown or set by this package{hint}"
