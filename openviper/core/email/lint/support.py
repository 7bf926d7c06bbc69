"""Read the data on mail clients: which features each of them shows, from the last test of its newest version."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from openviper.core.email.lint.css_features import CSS_FEATURES
from openviper.core.email.lint.html_features import HTML_FEATURES, IMAGE_FEATURES

__all__ = [
    "DETECTED",
    "WITHOUT_DETECTOR",
    "WITHOUT_EFFECT",
    "Feature",
    "SupportData",
    "has_any",
    "load_support",
    "support_version",
]

DETECTED = CSS_FEATURES | HTML_FEATURES | IMAGE_FEATURES
"""The features that lint finds in a message."""

WITHOUT_DETECTOR = {
    "amp": "it needs a separate MIME part, which these messages do not have",
    "bimi": "it is a DNS record of the sender's domain",
    "image-hdr": "it can be seen only in the content of an image",
}
"""The features of the data that lint does not find, and why."""

WITHOUT_EFFECT = {
    "html-comments": "readers do not see them",
    "html-doctype": "the page around the message sets the mode",
    "html-loading-attribute": "mail clients load images at once anyway",
    "html-target": "the mail client decides where a link opens",
}
"""Features that lint finds and does not report, because readers see no difference."""

Support = Literal["y", "a", "n", "u"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of HTML, CSS or images: its title, the date of its last test, and the support of each client.

    ``support`` is "y" (yes), "a" (in part), "n" (no) or "u" (unknown); ``notes`` has texts and the clients that they
    are about.
    """

    slug: str
    title: str
    tested: str
    support: Mapping[str, Support]
    notes: tuple[tuple[str, tuple[str, ...]], ...]

    def untested(self) -> frozenset[str]:
        """Return the clients whose support is unknown."""
        return frozenset(client for client, support in self.support.items() if support == "u")

    def limited(self, limit: str) -> frozenset[str]:
        """Return the clients with a note that has the text ``limit``."""
        return frozenset(client for text, clients in self.notes if limit in text for client in clients)

    def limited_only(self, limits: Collection[str]) -> frozenset[str]:
        """Return the clients that have notes, each with one of the texts ``limits``."""
        noted = {client for _, clients in self.notes for client in clients}
        return frozenset(noted.difference(*(named for text, named in self.notes if not has_any(text, limits))))


def has_any(note: str, limits: Collection[str]) -> bool:
    """True if a note has one of the texts ``limits``."""
    return any(limit in note for limit in limits)


@dataclass(frozen=True, slots=True)
class SupportData:
    """The data: where it is from, the clients as ``family.platform``, and the features by their names."""

    version: str
    date: str
    families: Mapping[str, str]
    platforms: Mapping[str, str]
    clients: tuple[str, ...]
    features: Mapping[str, Feature]

    def matching(self, targets: Collection[str]) -> tuple[str, ...]:
        """Return the clients that ``targets`` name, each a family (``gmail``) or one client (``gmail.ios``)."""
        return tuple(client for client in self.clients if client in targets or client.partition(".")[0] in targets)

    def describe(self, clients: Collection[str], untested: Collection[str] = ()) -> str:
        """Return the names of clients: a family alone if all of it is among them, else with its platforms.

        ``untested`` clients do not count to a family.
        """
        words: list[str] = []
        for family, name in self.families.items():
            whole = [client for client in self.clients if client.partition(".")[0] == family]
            named = [self.platforms[client.partition(".")[2]] for client in whole if client in clients]
            if named:
                words.append(
                    name
                    if all(client in clients or client in untested for client in whole)
                    else f"{name} ({', '.join(named)})"
                )
        return ", ".join(words)


def support_version() -> dict[str, str]:
    """Return where the data is from: the package, its version, and the date of the data. Reads a file."""
    data = load_support()
    return {"package": "caniemail", "version": data.version, "date": data.date}


@cache
def load_support() -> SupportData:
    """Return the data, which the first call reads from its file: use a thread."""
    raw = json.loads(files(__package__).joinpath("caniemail.json").read_text(encoding="utf-8"))
    clients = tuple(raw["clients"])
    features = {
        slug: Feature(
            slug=slug,
            title=feature["title"],
            tested=feature["tested"],
            support=dict(zip(clients, feature["support"], strict=True)),
            notes=tuple(
                (text, tuple(clients[number] for number in numbers)) for text, numbers in feature.get("notes", ())
            ),
        )
        for slug, feature in raw["features"].items()
    }
    return SupportData(raw["version"], raw["date"], raw["families"], raw["platforms"], clients, features)
