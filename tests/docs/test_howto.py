"""The how-to pages: each application passes the test beside it, run as its reader would run it."""

import os
import shutil
from pathlib import Path

import pytest
from support.browser import CHROMIUM, needs_chromium
from support.documents import ROOT
from support.programs import run_pytest

HOWTO = ROOT / "docs" / "examples" / "howto"
# The test client of Starlette warns about the httpx that it is used with.
_ALLOWED = "ignore:Using `httpx` with `starlette.testclient` is deprecated"
ALONE = sorted(path.name for path in HOWTO.iterdir() if path.is_dir() and path.name not in ("playwright", "postgres"))


def run_tests(folder: Path, **environment: str) -> str:
    """Run the tests in ``folder`` with pytest, and return its output; they must pass."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    ended = run_pytest(folder, {**os.environ, "PYTHONPATH": path, **environment}, "-W", _ALLOWED, ".")
    assert ended.status == 0, ended.output + ended.errors
    return ended.output


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
    ran = run_tests(tmp_path, CHROMIUM=str(CHROMIUM), CHROMIUM_ARGUMENTS=arguments)
    assert "1 passed" in ran
