"""Validate and describe each kind of value in ``EMAIL``."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from jinja2 import Environment
from pydantic import BeforeValidator, Field, PlainValidator, SecretStr

from openviper.conf.kinds import SettingKind, flag_from_text
from openviper.core.email.addresses import read_address
from openviper.core.email.errors import InvalidAddress
from openviper.core.email.settings.mail_clients import mail_client
from openviper.core.email.settings.units import Rate, byte_count, seconds
from openviper.network import is_loopback
from openviper.text import control_character

__all__ = [
    "Backend",
    "Bytes",
    "Count",
    "Directory",
    "DkimKeys",
    "Folders",
    "Functions",
    "Hosts",
    "InboxMode",
    "MailClients",
    "Mailboxes",
    "MailboxesOrDomains",
    "Mailers",
    "MaybeAbsolutePath",
    "MaybeEnvironment",
    "MaybeFlag",
    "MaybeFunction",
    "MaybeHeader",
    "MaybeHost",
    "MaybeKey",
    "MaybePath",
    "MaybeRate",
    "MaybeSecret",
    "MaybeSender",
    "MaybeSiteURL",
    "MaybeText",
    "MaybeToken",
    "MaybeURL",
    "NamedSettings",
    "OnUncertain",
    "OneOrMoreFunctions",
    "Period",
    "Port",
    "Retries",
    "ServerName",
    "SigningKeys",
    "Span",
    "Texts",
]

_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,75}")
_SELECTOR = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
# Characters that mean nothing in a header, in HTML and in text, so that a link is written everywhere as it is.
_SITE_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~%/-]*)?")
_SHORTEST_KEY = 32  # characters: 128 bits in hexadecimal digits
_NONE = frozenset({"none", "auto"})


def _maybe_flag_from_text(text: str) -> bool | None:
    return None if text.strip().lower() in _NONE else flag_from_text(text)


def _inbox_from_text(text: str) -> bool | str | None:
    return "always" if text.strip().lower() == "always" else _maybe_flag_from_text(text)


def _int_from_text(text: str) -> int:
    stripped = text.strip()
    if not (stripped.isascii() and stripped.isdigit() and len(stripped) < 20):
        raise ValueError("is not a whole number")
    return int(stripped)


def _bytes_from_text(text: str) -> int | str:
    return int(text) if text.strip().isdecimal() else text


def _seconds_from_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _rate_from_text(text: str) -> str | None:
    return None if text.strip().lower() in _NONE else text


def _folders_from_text(text: str) -> list[str]:
    return [part.strip() for part in text.split(os.pathsep) if part.strip()]


def _hosts_from_text(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _plain(value: object) -> str:
    """Refuse control characters: they could end a line of SMTP or of a header."""
    if not isinstance(value, str):
        raise ValueError("is not a string")
    if control_character(value):
        raise ValueError("has a control character or a line break")
    return value


def _sender(value: Any) -> str:
    """Return the address as text, whatever it is given as: a str stays as it is, so that it is shown as written."""
    try:
        address = read_address(value, field="sender")
    except InvalidAddress as error:
        raise ValueError(error.reason) from None
    return value if isinstance(value, str) else str(address)


def _optional(check: Callable[[Any], object]) -> Callable[[object], object]:
    """Let None pass, and take an empty string for None: ``os.environ.get("...", "")`` is common in settings modules."""
    return lambda value: None if value is None or value == "" else check(value)


def _host(value: object) -> str:
    text = _plain(value)
    if not text or any(character.isspace() or character in "/@[]" for character in text):
        raise ValueError("is not a bare host name or address")
    if text.count(":") == 1:
        raise ValueError("contains a port, which has its own setting")
    return text


def _listed_host(value: object) -> str:
    return _host(value).lower()


def _secret(value: object) -> SecretStr | None:
    text = _plain(value.get_secret_value() if isinstance(value, SecretStr) else value)
    return SecretStr(text) if text else None


def _signing_keys(value: object) -> tuple[SecretStr, ...]:
    """Return the keys in their order, and a key alone as a list of one."""
    if value is None or value == "" or (isinstance(value, SecretStr) and not value.get_secret_value()):
        return ()
    given = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(each, str | SecretStr) for each in given):
        raise ValueError("is not a list of strings")
    keys = tuple(_secret(each) for each in given)
    found = tuple(key for key in keys if key is not None and len(key.get_secret_value()) >= _SHORTEST_KEY)
    if len(found) != len(keys):
        raise ValueError(f"has a key of less than {_SHORTEST_KEY} characters")
    return found


def _signing_keys_from_text(text: str) -> list[SecretStr]:
    return [SecretStr(part) for part in _hosts_from_text(text)]


def _site_url(value: object) -> str:
    """Return the URL without a slash at its end."""
    text = _plain(value)
    match = _SITE_URL.fullmatch(text)
    if match is None:
        raise ValueError("is not a URL with a scheme, an ASCII host and optionally a path")
    if match[1] == "http" and not is_loopback(match[2].strip("[]")):
        raise ValueError("is not https")
    return text.rstrip("/")


def _key(value: object) -> SecretStr | None:
    secret = _secret(value)
    if secret is not None and len(secret.get_secret_value()) < _SHORTEST_KEY:
        raise ValueError(f"is shorter than {_SHORTEST_KEY} characters")
    return secret


def _token(value: object) -> SecretStr | Callable[[], Any] | None:
    return value if callable(value) else _secret(value)


def _mailbox(value: Any) -> str:
    """Return the address alone: a name has no place in an envelope."""
    try:
        return read_address(value, field="").addr_spec
    except InvalidAddress as error:
        raise ValueError(error.reason) from None


def _mailbox_or_domain(value: Any) -> str:
    if isinstance(value, str) and "@" not in value:
        return _mailbox(f"postmaster@{value}").partition("@")[2]
    return _mailbox(value)


def _one_or_more(check: Callable[[Any], object]) -> Callable[[object], object]:
    """Take None for an empty list, and a value alone for a list of one."""

    def convert(value: object) -> object:
        if value is None or value == "":
            return ()
        return _each(check)(value if isinstance(value, list | tuple | set | frozenset) else [value])

    return convert


def _function(value: object) -> Callable[..., Any] | str:
    return value if callable(value) else _plain(value)


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if value == "":
        raise ValueError("is empty")
    return Path(_plain(value))


def _absolute_path(value: object) -> Path:
    path = _path(value)
    if not path.is_absolute():
        raise ValueError("is a relative path: processes started in different folders would not share it")
    return path


def _each(check: Callable[[object], object]) -> Callable[[object], object]:
    def convert(value: object) -> object:
        if not isinstance(value, list | tuple | set | frozenset):
            raise ValueError("is not a list")
        return tuple(check(item) for item in value)

    return convert


def _rate(value: object) -> Rate:
    return value if isinstance(value, Rate) else Rate.parse(_plain(value))


class NamedSettings(dict[str, Any]):
    """Settings by name, which are not changed after validation, so that what holds them can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override] # unlike a dict
        return hash(frozenset(self.items()))


def _mailers(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("is not a dict")
    return NamedSettings(value)


def _dkim(value: object) -> NamedSettings:
    """Return domains in their ASCII form with their selectors and keys; none for None and False."""
    if value is None or value is False or value == "":
        return NamedSettings()
    if not isinstance(value, Mapping):
        raise ValueError("is not a dict")
    return NamedSettings(
        {_mailbox(f"postmaster@{name}").partition("@")[2]: _keys(name, of) for name, of in value.items()}
    )


def _keys(domain: object, value: object) -> NamedSettings:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{domain!s:.100} needs a dict of selectors and keys")
    for selector, key in value.items():
        if not isinstance(selector, str) or not _SELECTOR.fullmatch(selector):
            raise ValueError(f"{domain!s:.100} has an invalid selector")
        if not (callable(key) or isinstance(key, str | bytes | Path)) or not key:
            raise ValueError(f"{domain!s:.100} has a selector without a key")
    return NamedSettings(value)


def _header_name(value: object) -> str:
    text = _plain(value)
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError("is not the name of a header")
    return text


def _environment(value: object) -> Environment | str:
    return value if isinstance(value, Environment) else _plain(value)


def _none_or(check: Callable[[Any], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else check(value)


MaybeFlag = Annotated[bool | None, SettingKind("True, False or None", _maybe_flag_from_text)]
InboxMode = Annotated[bool | Literal["always"] | None, SettingKind('True, False, None or "always"', _inbox_from_text)]
OnUncertain = Annotated[Literal["retry", "hold"], SettingKind('"retry" or "hold"')]

Port = Annotated[int, Field(ge=1, le=65535), SettingKind("a whole number from 1 to 65535", _int_from_text)]
Count = Annotated[int, Field(ge=1), SettingKind("a whole number of at least 1", _int_from_text)]
Retries = Annotated[int, Field(ge=0, le=20), SettingKind("a whole number from 0 to 20", _int_from_text)]
Bytes = Annotated[
    int,
    BeforeValidator(byte_count),
    Field(ge=1),
    SettingKind('a number of bytes of at least 1, or a string with a unit such as "25 MB"', _bytes_from_text),
]
Period = Annotated[
    float,
    BeforeValidator(seconds),
    Field(gt=0, allow_inf_nan=False),
    SettingKind('seconds above 0, a timedelta, or a string with a unit such as "90 s"', _seconds_from_text),
]
Span = Annotated[
    float,
    BeforeValidator(seconds),
    Field(ge=0, allow_inf_nan=False),
    SettingKind('seconds (0 or more), a timedelta, or a string with a unit such as "7 days"', _seconds_from_text),
]
MaybeRate = Annotated[
    Rate | None,
    BeforeValidator(_none_or(_rate)),
    SettingKind('None or a rate such as "14/second", "500/minute" or "14/second shared"', _rate_from_text),
]

ServerName = Annotated[str, BeforeValidator(_host), SettingKind("a host name or IP address, without scheme and port")]
MaybeHost = Annotated[
    str | None, BeforeValidator(_optional(_host)), SettingKind("None or a host name, without scheme and port")
]
MaybeText = Annotated[
    str | None, BeforeValidator(_optional(_plain)), SettingKind("None or a string without control characters")
]
MaybeSender = Annotated[
    str | None,
    BeforeValidator(_optional(_sender)),
    SettingKind(
        'None or one address such as "Shop <orders@shop.example>", a pair (name, address) or an Address', address=True
    ),
]
MaybeSecret = Annotated[
    SecretStr | None,
    BeforeValidator(_optional(_secret)),
    SettingKind("None or a string without control characters", secret=True),
]
MaybeURL = Annotated[
    SecretStr | None,
    BeforeValidator(_optional(_secret)),
    SettingKind("None or a URL such as smtps://user:password@smtp.example.com", secret=True),
]
SigningKeys = Annotated[
    tuple[SecretStr, ...],
    BeforeValidator(_signing_keys),
    SettingKind(
        f"a list of secrets of at least {_SHORTEST_KEY} characters each (in the environment, separated by commas)",
        _signing_keys_from_text,
        secret=True,
    ),
]
MaybeSiteURL = Annotated[
    str | None,
    BeforeValidator(_optional(_site_url)),
    SettingKind("None or a URL such as https://shop.example, with http only on this machine"),
]
MaybeKey = Annotated[
    SecretStr | None,
    BeforeValidator(_optional(_key)),
    SettingKind(f"None or a secret of at least {_SHORTEST_KEY} characters", secret=True),
]
MaybeToken = Annotated[
    SecretStr | Callable[[], Any] | None,
    BeforeValidator(_optional(_token)),
    SettingKind("None, a string without control characters, or a function that returns a token", secret=True),
]
Backend = Annotated[
    str,
    BeforeValidator(_plain),
    Field(min_length=1),
    SettingKind("the name of a backend or the dotted path of your own"),
]

OneOrMoreFunctions = Annotated[
    tuple[Callable[..., Any] | str, ...],
    BeforeValidator(_one_or_more(_function)),
    SettingKind(
        "None, a function, its dotted path, or a list of them (in the environment, separated by commas)",
        _hosts_from_text,
    ),
]
Functions = Annotated[
    tuple[Callable[..., Any] | str, ...],
    BeforeValidator(_each(_function)),
    SettingKind(
        "a list of functions or their dotted paths (in the environment, separated by commas)", _hosts_from_text
    ),
]

MaybeFunction = Annotated[
    Callable[..., Any] | str | None,
    BeforeValidator(_optional(_function)),
    SettingKind("None, a function, or the dotted path of one"),
]
Mailers = Annotated[
    Mapping[str, Any],
    PlainValidator(_mailers),
    # Its values hold passwords.
    SettingKind("a dict of names to dicts of settings", secret=True),
]
DkimKeys = Annotated[
    Mapping[str, Mapping[str, Any]],
    PlainValidator(_dkim),
    # Its values may be keys.
    SettingKind("None, False, or a dict of domains to dicts of selectors to keys", secret=True),
]
MaybeHeader = Annotated[
    str | None, BeforeValidator(_optional(_header_name)), SettingKind("None or the name of a header")
]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_each(_plain)),
    SettingKind("a list of strings (in the environment, separated by commas)", _hosts_from_text),
]

MailClients = Annotated[
    tuple[str, ...],
    BeforeValidator(_each(mail_client)),
    SettingKind(
        'a list of families of mail clients, or of single ones such as "gmail.ios" (in the environment, separated by '
        "commas)",
        _hosts_from_text,
    ),
]
Mailboxes = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more(_mailbox)),
    SettingKind("a list of addresses (in the environment, separated by commas)", _hosts_from_text, address=True),
]
MailboxesOrDomains = Annotated[
    tuple[str, ...],
    BeforeValidator(_each(_mailbox_or_domain)),
    SettingKind(
        "a list of addresses and domains (in the environment, separated by commas)", _hosts_from_text, address=True
    ),
]

MaybeEnvironment = Annotated[
    Environment | str | None,
    BeforeValidator(_optional(_environment)),
    SettingKind("None, a jinja2.Environment, or the dotted path of one"),
]

Directory = Annotated[Path, BeforeValidator(_path), SettingKind("a path")]
MaybePath = Annotated[Path | None, BeforeValidator(_optional(_path)), SettingKind("None or a path")]
MaybeAbsolutePath = Annotated[
    Path | None, BeforeValidator(_optional(_absolute_path)), SettingKind("None or an absolute path")
]
Folders = Annotated[
    tuple[Path, ...] | None,
    BeforeValidator(_none_or(_each(_path))),
    SettingKind(f"None or a list of paths (in the environment, separated by '{os.pathsep}')", _folders_from_text),
]
Hosts = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_none_or(_each(_listed_host))),
    SettingKind("None or a list of host names (in the environment, separated by commas)", _hosts_from_text),
]
