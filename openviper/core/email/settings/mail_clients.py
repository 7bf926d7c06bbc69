"""Names of the mail clients that lint can judge by; a test compares them with its data."""

from openviper.text import shown, suggestion

__all__ = ["DEFAULT_CLIENTS", "MAIL_CLIENTS", "mail_client"]

DEFAULT_CLIENTS = ("apple-mail", "gmail", "outlook", "yahoo", "aol", "samsung-email", "thunderbird", "protonmail")

_PLATFORMS = {
    "aol": "android desktop-webmail ios",
    "apple-mail": "ios macos",
    "fastmail": "desktop-webmail",
    "free-fr": "desktop-webmail",
    "gmail": "android desktop-webmail ios mobile-webmail",
    "gmx": "android desktop-webmail ios",
    "hey": "desktop-webmail",
    "ionos-1and1": "android desktop-webmail",
    "laposte": "android desktop-webmail ios",
    "mail-ru": "desktop-webmail",
    "orange": "android desktop-webmail ios",
    "outlook": "android ios macos outlook-com windows windows-mail",
    "protonmail": "android desktop-webmail ios",
    "rainloop": "desktop-webmail",
    "samsung-email": "android",
    "sfr": "android desktop-webmail ios",
    "t-online-de": "desktop-webmail",
    "thunderbird": "macos windows",
    "web-de": "android desktop-webmail ios",
    "wp-pl": "desktop-webmail",
    "yahoo": "android desktop-webmail ios",
}
MAIL_CLIENTS = frozenset(f"{family}.{platform}" for family in _PLATFORMS for platform in _PLATFORMS[family].split())
"""All clients, as ``family.platform``."""


def mail_client(value: object) -> str:
    """Return a family of mail clients (``gmail``) or one of them (``gmail.ios``) in lower case.

    Raises:
        ValueError: there is no such client in the data.
    """
    name = value.strip().lower() if isinstance(value, str) else ""
    if name in _PLATFORMS or name in MAIL_CLIENTS:
        return name
    if not name:
        raise ValueError("has a value that is not the name of a mail client")
    near = suggestion(name, [*_PLATFORMS, *MAIL_CLIENTS], otherwise=f"families are {', '.join(_PLATFORMS)}")
    raise ValueError(f"has {shown(name)}, which is not a known mail client{near}")
