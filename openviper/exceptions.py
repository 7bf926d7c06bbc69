"""The errors that every part of the package shares; none of them knows mail."""

__all__ = ["ImproperlyConfigured", "MissingDependency", "OpenViperError"]


class OpenViperError(Exception):
    """Base of every error that this package raises on purpose."""


class ImproperlyConfigured(OpenViperError):
    """A setting is missing or wrong; the text begins with the setting, e.g. ``EMAIL["port"]: ...``.

    Stands outside the tree of delivery errors, so that catching a failed delivery never hides a typo in settings.
    """


class MissingDependency(ImproperlyConfigured, ImportError):
    """An optional library is not installed; the text has the pip line that installs it."""
