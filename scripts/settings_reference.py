#!/usr/bin/env python3
"""Write docs/settings.md from the settings model: ``.venv/bin/python scripts/settings_reference.py``."""

from html import escape
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from openviper.conf.sources import aliases, kinds
from openviper.core.email.settings import EmailSettings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

# The first setting of each section, in the order of the model.
_SECTIONS = {
    "url": "The server",
    "default_sender": "Messages",
    "backend": "Where mail goes",
    "pool_size": "Connections",
    "outbox": "Deferred mail, retries, shutdown",
    "max_attachment_bytes": "Limits",
    "inbox": "The inbox page",
}

_INTRODUCTION = """\
# Settings

<!-- Written by scripts/settings_reference.py from openviper/core/email/settings/model.py; change it there. -->

All mail settings are keys of one dict, `EMAIL`. Each is taken from the first of these sources that has it:

1. the argument of `Email(...)` or `EmailMiddleware(app, ...)`,
2. the environment: `EMAIL_` and the key in capitals, such as `EMAIL_HOST`,
3. `EMAIL` in the settings module, which `OPENVIPER_SETTINGS_MODULE` names (`shop.settings`), or in a script's
   `settings.configure(EMAIL={...})`,
4. the default.

You can put your own settings beside `EMAIL` in the settings module, in capitals: `PUBLIC_URL = "https://shop.example"`.
After `from openviper.conf import settings`, your code reads them as `settings.PUBLIC_URL`.

```python
import os

EMAIL = {
    "host": "smtp.example.com",
    "use_ssl": True,
    "username": "apikey",
    "password": os.environ.get("SMTP_PASSWORD", "secret"),
    "default_sender": "Viper Supplies <orders@shop.example>",
    "rate_limit": "14/second",
    "shutdown_timeout": "25 s",
    "max_attachment_bytes": "10 MB",
}
```

All settings are checked together, when an application starts or at the first message. Unknown keys, wrong values and
settings that exclude each other are reported in one `ImproperlyConfigured`, with a line for each:

```python
from openviper.core.email import EmailSettings
from openviper.exceptions import ImproperlyConfigured

try:
    EmailSettings.load(
        {"hots": "localhost", "port": 0, "use_tls": True, "use_ssl": True}
    )
except ImproperlyConfigured as error:
    print(error)
```

```text
Email({"hots": ...}): there is no such setting; did you mean 'host'?
Email({"port": ...}): 0 is not allowed; give a whole number from 1 to 65535
Email({"use_ssl": ...}): excludes Email({"use_tls": ...}), and both are True; keep use_tls for STARTTLS or use_ssl
```

Durations are seconds, a `timedelta`, or text with a unit (`"90 s"`, `"24 hours"`, `"7 days"`). Sizes are bytes or text
with a unit (`"25 MB"`; 1 MB is 1,048,576 bytes). In the environment, an empty variable counts as not set, flags are
`true`, `yes`, `on`, `1` or `false`, `no`, `off`, `0`, and unknown variables are ignored. Passwords appear neither in
`repr` nor in an error.
"""

_OTHERS = """
## Settings besides EMAIL

| setting | default | meaning |
|---|---|---|
| `DEBUG` | `False` | True: missing template variables are errors, templates are reloaded, and the inbox page is on. |
| `TEMPLATES_DIR` | `"templates"` | Folder of the templates, or a list of folders; relative to the working directory. |
| `DATABASE_URL` | `"sqlite+aiosqlite:///db.sqlite3"` | The database of `openviper.db`. |

These are read only from the settings module or `settings.configure()`, not from the environment. Names such as
`EMAIL_HOST` are for the environment; the settings module refuses them, because there they are keys of `EMAIL`.
"""


def page() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for name, field in EmailSettings.model_fields.items():
        if name in _SECTIONS:
            parts.append(f"\n## {_SECTIONS[name]}\n\n| key | default | value | meaning |\n|---|---|---|---|\n")
        allowed = escape(kinds(EmailSettings)[name].allowed, quote=False)
        parts.append(f"| `{name}` | {_default(name, field)} | {allowed} | {_meaning(field)} |\n")
    others = ", ".join(f"`{alias}` for `{name}`" for alias, name in aliases(EmailSettings).items())
    parts.append(f"\nOther accepted names: {others}.\n")
    return "".join([*parts, _OTHERS])


def _meaning(field: FieldInfo) -> str:
    # A tag would be parsed as HTML, and some tags hide the text after them.
    return escape(field.description or "", quote=False)


def _default(name: str, field: FieldInfo) -> str:
    value: Any = field.default
    if name.endswith("bytes"):
        return f"`{value // 1024**2} MB`"
    if isinstance(value, float):
        return f"`{_span(value)}`"
    if isinstance(value, str | Path):
        return f'`"{value}"`'
    if isinstance(value, tuple) and value:
        return ", ".join(f"`{each}`" for each in value)
    return f"`{value}`"


def _span(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds:g} s"
    return f"{seconds / 3600:g} hours" if seconds <= 86400 else f"{seconds / 86400:g} days"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
