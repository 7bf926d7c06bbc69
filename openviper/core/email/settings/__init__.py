"""Mail settings; the only part of the component that reads ``openviper.conf``."""

from openviper.core.email.settings.mailers import DEFAULT_MAILER
from openviper.core.email.settings.model import EmailSettings
from openviper.core.email.settings.project import (
    database_url,
    debug,
    has_database,
    settings_in_use,
    settings_module,
    settings_origin,
    settings_version,
    settings_were_read,
    template_dirs,
)

__all__ = [
    "DEFAULT_MAILER",
    "EmailSettings",
    "database_url",
    "debug",
    "has_database",
    "settings_in_use",
    "settings_module",
    "settings_origin",
    "settings_version",
    "settings_were_read",
    "template_dirs",
]
