#!/usr/bin/env python3
"""Renew the data on mail clients: ``.venv/bin/python scripts/client_support.py [VERSION]``.

Fetches the npm package caniemail (its newest version unless VERSION is given) with npm, and writes what lint needs of
it beside ``openviper/core/email/lint``: the latest test of each client, its notes, and the date. Prints the version,
and each feature and client that came or went: new features need a detector, or a line in ``WITHOUT_DETECTOR``.
"""

import argparse
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any

__all__ = ["DATA", "NOTICE", "cut", "data_text", "main", "notice_text"]

_ROOM = Path(__file__).parents[1] / "openviper" / "core" / "email" / "lint"
DATA = _ROOM / "caniemail.json"
NOTICE = _ROOM / "caniemail-notice.txt"

_PACKAGE = "caniemail"
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_DATE = re.compile(r"\d{4}-\d\d")
_UNKNOWN = "u"


def cut(data: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return the needed fields of the package's data.

    ``support`` of a feature has a letter for each client, in the order of ``clients``: y (yes), a (in part), n (no), or
    u (unknown). ``notes`` are texts with the numbers of the clients that they are about.
    """
    clients = sorted({f"{family}.{platform}" for feature in data["data"] for family, platform in _tested(feature)})
    families = {client.partition(".")[0] for client in clients}
    platforms = {client.partition(".")[2] for client in clients}
    return {
        "package": _PACKAGE,
        "version": version,
        "date": data["last_update_date"][:10],
        "families": {name: data["nicenames"]["family"][name] for name in sorted(families)},
        "platforms": {name: data["nicenames"]["platform"][name] for name in sorted(platforms)},
        "clients": clients,
        "features": {feature["slug"]: _cut_feature(feature, clients) for feature in data["data"]},
    }


def _tested(feature: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(family, platform) for family, platforms in feature["stats"].items() for platform in platforms]


def _cut_feature(feature: Mapping[str, Any], clients: list[str]) -> dict[str, Any]:
    support = ""
    notes: dict[str, list[int]] = {}
    for number, client in enumerate(clients):
        family, _, platform = client.partition(".")
        versions = feature["stats"].get(family, {}).get(platform)
        latest = versions[_newest(versions)] if versions else _UNKNOWN
        support += latest[0]
        if latest[0] in "an":
            for note in re.findall(r"#(\d+)", latest):
                text = (feature["notes_by_num"] or {}).get(note)
                if text:
                    notes.setdefault(_plain(text), []).append(number)
    kept = {"title": feature["title"].strip(), "tested": feature["last_test_date"], "support": support}
    return {**kept, "notes": sorted(notes.items())} if notes else kept


def _newest(versions: Mapping[str, str]) -> str:
    """Return the version released last: the greatest of dates, else the last in the order of the data.

    That is the order of release for all but a few dates; where numbers follow dates ("2019-10", "16.80"), or differ in
    their digits ("9", "10"), no comparison of texts gives it.
    """
    names = list(versions)
    return max(names) if all(_DATE.fullmatch(name) for name in names) else names[-1]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", _LINK.sub(r"\1", text).replace("`", "")).strip()


def _fetch(version: str) -> tuple[dict[str, Any], str, str]:
    """Return the package's data, version and licence."""
    with TemporaryDirectory() as folder:
        packed = subprocess.run(  # noqa: S603 # the version is the developer's own argument
            ["npm", "pack", "--silent", f"{_PACKAGE}@{version}"],  # noqa: S607 # whichever npm the developer has
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(Path(folder) / packed.stdout.split()[-1]) as archive:

            def read(name: str) -> str:
                member = archive.extractfile(f"package/{name}")
                assert member is not None, name
                return member.read().decode()

            return (
                json.loads(read("data/caniemail.json")),
                json.loads(read("package.json"))["version"],
                read("LICENSE"),
            )


def data_text(made: Mapping[str, Any]) -> str:
    """Return the file of the data, with a line for each feature, so that a renewal can be read as a difference."""
    head = {name: value for name, value in made.items() if name != "features"}
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}," for name, value in head.items()]
    features = [
        f"{json.dumps(slug)}: {json.dumps(feature, ensure_ascii=False, separators=(',', ':'))}"
        for slug, feature in made["features"].items()
    ]
    return "\n".join(["{", *lines, '"features": {', ",\n".join(features), "}", "}", ""])


def notice_text(made: Mapping[str, Any], licence: str) -> str:
    """Return the notice that belongs to the data; ``licence`` is that of the package."""
    origin = (
        f"{DATA.name} is a cut of the data of Can I email (caniemail.com) of {made['date']}, made from the npm package "
        f"{made['package']} {made['version']} by scripts/client_support.py."
    )
    data = "The data: Copyright (c) 2019 HTeuMeuLeu, under the MIT License. The package:"
    return f"{fill(origin, 110)}\n\n{data}\n\n{licence.strip()}\n"


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind} {word}: {name}"
        for kind in ("clients", "features")
        for word, names in (
            ("added", set(after[kind]) - set(before[kind])),
            ("gone", set(before[kind]) - set(after[kind])),
        )
        for name in sorted(names)
    ]


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", nargs="?", default="latest", help="version of the npm package (default: latest)")
    data, version, licence = _fetch(parser.parse_args().version)
    made = cut(data, version)
    before = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else made
    DATA.write_text(data_text(made), encoding="utf-8")
    NOTICE.write_text(notice_text(made, licence), encoding="utf-8")
    report = [f"{_PACKAGE} {version}, data of {made['date']}: {len(made['features'])} features"]
    sys.stdout.write("\n".join([*report, *_changes(before, made)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
