"""The package as it was before version 2 of the stored form, taken from the history of this repository."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.documents import ROOT
from support.patience import PATIENCE

__all__ = ["EarlierVersion", "earlier_version"]

COMMIT = "54ca100db2d190cef49afcf9075776be1a77515a"


class EarlierVersion:
    """The package of ``COMMIT`` in ``folder``; processes with ``env`` import it instead of today's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"PYTHONPATH": str(folder)}

    def run(self, script: str, *arguments: str, given: str = "") -> str:
        """Run a script in a process of its own, ``given`` as its input; return what it prints."""
        ended = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.env},
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="session")
def earlier_version(tmp_path_factory: pytest.TempPathFactory) -> EarlierVersion:
    """Unpack it; without the commit the test is skipped, which is a failure in CI."""
    folder = tmp_path_factory.mktemp("earlier")
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "archive", COMMIT, "openviper"]
    archive = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    if archive.returncode != 0:
        pytest.skip(
            f"commit {COMMIT[:7]}, the version to run beside this one, is not in this clone; fetch the whole history "
            "(git fetch --unshallow; in CI fetch-depth: 0)"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    version = EarlierVersion(folder)
    found = version.run("import openviper; print(openviper.__file__)").strip()
    assert Path(found).is_relative_to(folder), found
    return version
