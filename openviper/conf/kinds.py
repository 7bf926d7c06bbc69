"""Describe the value of a setting for errors, for the environment and for the settings reference."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from openviper.text import shown

__all__ = ["Flag", "SettingKind", "flag_from_text"]

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


class SettingKind(NamedTuple):
    """Metadata of a field, in its ``Annotated`` type beside the validators.

    ``allowed`` completes "give ..." in an error. ``from_text`` reads an environment variable, or raises ValueError.
    Errors never show a ``secret``, and text with "@" only if ``address`` is True, since a URL may hold a password.
    """

    allowed: str
    from_text: Callable[[str], Any] = str
    secret: bool = False
    address: bool = False

    def read(self, text: str) -> Any:
        """Return the value in an environment variable; validation refuses text that ``from_text`` cannot read."""
        try:
            return self.from_text(text)
        except ValueError:
            return text

    def show(self, value: object) -> str:
        """Return a wrong value as errors show it: short, on one line, without secrets."""
        if self.secret:
            return "***"
        text = shown(value)
        parts = value if isinstance(value, list | tuple | set | frozenset) else (value,)
        if not self.address and ("@" in text or any("@" in part for part in parts if isinstance(part, str))):
            return "'***'" if isinstance(value, str) else "***"
        return text


def flag_from_text(text: str) -> bool:
    """Return True for ``true``, ``yes``, ``on``, ``1`` and False for ``false``, ``no``, ``off``, ``0`` in any case.

    Raises:
        ValueError: it is another word.
    """
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("is not a yes or no")
    return word in _TRUE


Flag = Annotated[bool, SettingKind("True or False", flag_from_text)]
