"""Find mail settings that are spelt as in other libraries, and values that are given where nothing reads them."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from openviper.conf.sources import aliases, kinds, variables

__all__ = ["NAMES_ELSEWHERE", "misplaced_values", "unshared_values"]

_PREFIX = "EMAIL_"

# Of Django, Flask-Mail, fastapi-mail, Nodemailer and others; in lower case, without the prefix "email_".
NAMES_ELSEWHERE = {
    **dict.fromkeys(("server", "hostname", "smtp_host", "smtp_server", "mail_server", "mail_host"), "host"),
    **dict.fromkeys(("smtp_port", "mail_port"), "port"),
    **dict.fromkeys(("host_user", "login", "user_name", "smtp_user", "smtp_username", "mail_username"), "username"),
    **dict.fromkeys(("host_password", "pass", "passwd", "smtp_password", "mail_password"), "password"),
    **dict.fromkeys(("starttls", "start_tls", "require_tls", "mail_starttls", "mail_use_tls"), "use_tls"),
    **dict.fromkeys(("ssl_tls", "secure", "implicit_tls", "mail_ssl_tls", "mail_use_ssl"), "use_ssl"),
    **dict.fromkeys(
        ("from_email", "from_address", "sender", "default_from", "default_from_email", "mail_from"), "default_sender"
    ),
    "auth": "username",
    "mail_default_sender": "default_sender",
    "file_path": "file_dir",
}

# Without these mail would go to another server, or not at all.
_SERVER = frozenset({"host", "port", "username", "password", "use_tls", "use_ssl", "backend"})


def misplaced_values(model: type[BaseModel], settings: Mapping[str, Any], module: str | None) -> Iterator[str]:
    """Yield a line for each value that was meant for ``EMAIL`` and that nothing reads.

    ``settings`` are the upper-case names of ``module``: ``EMAIL_HOST = ...`` there is not read, nor is Django's
    ``EMAIL_HOST_USER`` in the environment, nor a dict as JSON in the variable ``EMAIL``. A project's own constants are
    left alone if ``EMAIL`` gives the value, and those about anything but the server if it gives any.
    """
    email = settings.get("EMAIL")
    email = email if isinstance(email, Mapping) else {}
    names = aliases(model)
    given = {names.get(key, key) for key in email} | {
        names.get(key, key) for variable, key in variables(model, _PREFIX).items() if os.environ.get(variable)
    }
    for name in settings:
        key = _field(model, name)
        if key is not None and key not in given and (key in _SERVER or not email):
            yield f'{name} in {module}: is not read there; write EMAIL = {{"{key}": ...}}'
    for variable in ("EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD"):
        key = NAMES_ELSEWHERE[variable.removeprefix(_PREFIX).lower()]
        if os.environ.get(variable) and key not in given:
            yield f"{variable} (environment): is not read; name it {_PREFIX}{key.upper()}"
    if os.environ.get("EMAIL", "").lstrip().startswith("{"):
        yield "EMAIL (environment): a dict is not read from there; give a variable for each setting, such as EMAIL_HOST"


def unshared_values(overrides: Mapping[str, Any], call: str) -> Iterator[str]:
    """Yield a line for each value that ``call`` gives to one application and that all processes must have.

    A script, a command or a worker that sends would send without the hook.
    """
    if overrides.get("before_send"):
        yield (
            f'{call}{{"before_send": ...}}): scripts, commands and workers would send without it; write '
            'EMAIL = {"before_send": ...} in the settings module'
        )


def _field(model: type[BaseModel], name: str) -> str | None:
    """Return the field that a name of a settings module was meant for; None if it is not about mail."""
    lower = name.lower()
    key = lower.removeprefix(_PREFIX.lower())
    if key == lower:  # without the prefix: only names that no project has for anything else
        return NAMES_ELSEWHERE.get(lower) if lower.startswith(("mail_", "default_from")) else None
    key = NAMES_ELSEWHERE.get(key, aliases(model).get(key, key))
    return key if key in kinds(model) else None
