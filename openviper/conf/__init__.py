"""Project settings: from a module of upper-case names, from ``settings.configure()``, or overridden for a block."""

from openviper.conf.imports import import_string, require
from openviper.conf.lazy import SETTINGS_VARIABLE, Settings, describe_origin, in_use, override, settings

__all__ = [
    "SETTINGS_VARIABLE",
    "Settings",
    "describe_origin",
    "import_string",
    "in_use",
    "override",
    "require",
    "settings",
]
