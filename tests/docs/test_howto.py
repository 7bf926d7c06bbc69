"""The how-to pages: each application passes the test beside it, run as its reader would run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.browser import CHROMIUM, needs_chromium
from support.documents import ROOT
from support.patience import PATIENCE
from support.ports import lasting_port

HOWTO = ROOT / "docs" / "examples" / "howto"
# The test client of Starlette warns about the httpx that it is used with.
_ALLOWED = "ignore:Using `httpx` with `starlette.testclient` is deprecated"
ALONE = sorted(path.name for path in HOWTO.iterdir() if path.is_dir() and path.name != "playwright")


def run_tests(folder: Path, **environment: str) -> str:
    """Run the tests in ``folder`` with pytest, and return its output; they must pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-W", _ALLOWED, "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", ALONE)
def test_an_application_passes_the_test_beside_it(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HOWTO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert " passed" in run_tests(folder)


@needs_chromium
def test_a_browser_confirms_the_address_of_the_sign_up_page(tmp_path: Path) -> None:
    shutil.copytree(HOWTO / "confirmation", tmp_path, dirs_exist_ok=True)
    (tmp_path / "test_app.py").unlink()
    shutil.copy(HOWTO / "playwright" / "test_sign_up.py", tmp_path)
    arguments = "--no-sandbox --disable-gpu"
    ran = run_tests(tmp_path, PORT=str(lasting_port()), CHROMIUM=str(CHROMIUM), CHROMIUM_ARGUMENTS=arguments)
    assert "1 passed" in ran
