"""OpenDKIM, unpacked into ``build/servers`` by ``scripts/test``, as a verifier of files: it asks no DNS."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from support.patience import PATIENCE

__all__ = ["verified_by_opendkim"]

_UNPACKED = Path(__file__).parents[2] / "build" / "servers" / "opendkim"
_RESULT = re.compile(r"^opendkim: \S*/(\d+)\.eml: verification \(.*\) (succeeded|failed)", re.MULTILINE)
_AT_ONCE = 100


def verified_by_opendkim(messages: Sequence[bytes], records: Mapping[str, str], folder: Path) -> list[bool]:
    """Whether the signatures of each message hold; ``records`` are TXT records by name, ``folder`` is for the files."""
    if not (_UNPACKED / ".unpacked").exists():
        pytest.skip("opendkim is not unpacked in build/servers (scripts/test does it)")
    (folder / "keys").write_text("".join(f"{name.rstrip('.')} {text}\n" for name, text in records.items()))
    configuration = folder / "opendkim.conf"
    configuration.write_text(f"Mode v\nSyslog no\nTestPublicKeys {folder / 'keys'}\n")
    files = []
    for number, content in enumerate(messages):
        files.append(folder / f"{number}.eml")
        files[-1].write_bytes(content)
    libraries = ":".join(sorted({str(file.parent) for file in _UNPACKED.rglob("*.so*")}))
    found: dict[int, bool] = {}
    for begin in range(0, len(files), _AT_ONCE):
        done = subprocess.run(
            [
                _UNPACKED / "usr" / "sbin" / "opendkim",
                "-t",
                ",".join(map(str, files[begin : begin + _AT_ONCE])),
                "-x",
                configuration,
            ],
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        for number, result in _RESULT.findall(done.stdout + done.stderr):
            found[int(number)] = result == "succeeded"
    assert len(found) == len(messages), f"opendkim judged {len(found)} of {len(messages)} messages"
    return [found[number] for number in range(len(messages))]
