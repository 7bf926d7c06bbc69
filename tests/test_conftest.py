"""The rules that tests/conftest.py makes for every test."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from blockbuster import BlockingError
from support.patience import PATIENCE
from support.uvicorn import Uvicorn

from openviper.conf import import_string, settings

TESTS = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", os.devnull, "-rA"]


def run_pytest(folder: Path, code: str, *options: str, **environment: str) -> tuple[int, str]:
    """Run ``code`` as a test module under our conftest; returns the exit code and what was printed."""
    module = folder / "test_sample.py"
    module.write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "conftest",
            "--rootdir",
            folder,
            "-c",
            os.devnull,
            "-rA",
            *options,
            module,
        ],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONSAFEPATH": "1", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout


SKIPS = """
import pytest

@pytest.mark.skip(reason="no mail server")
def test_marked():
    pass

def test_inside():
    pytest.skip("no database")
"""


def test_skipped_tests_pass_on_a_laptop(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, SKIPS, CI="")
    assert code == 0, output
    assert "2 skipped" in output


def test_skipped_tests_fail_in_ci(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, SKIPS, CI="true")
    assert code == 1, output
    assert "no mail server" in output
    assert "no database" in output


def test_a_skipped_module_fails_in_ci(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, "import pytest\npytest.importorskip('no_such_library')\n", CI="true")
    assert code != 0, output
    assert "no_such_library" in output


LONG = """
import pytest

@pytest.mark.long
def test_kills():
    print("kills ran")

def test_short():
    print("short ran")
"""


@pytest.mark.parametrize("ci", ["", "true"])
def test_long_tests_are_left_out_and_that_is_no_skip(tmp_path: Path, ci: str) -> None:
    code, output = run_pytest(tmp_path, LONG, CI=ci)
    assert code == 0, output
    assert "1 passed, 1 deselected" in output
    assert "kills ran" not in output


def test_long_tests_run_when_they_are_asked_for(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, LONG, "--long")
    assert code == 0, output
    assert "2 passed" in output
    assert "kills ran" in output


UNHURRIED = """
import time
from hypothesis import given, settings, strategies

@settings(max_examples=2)
@given(strategies.integers())
def test_slow(number):
    time.sleep(0.5)
"""


def test_hypothesis_sets_no_deadline_to_an_example(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, UNHURRIED)
    assert code == 0, output


async def test_a_blocking_call_of_our_code_on_the_loop_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that our import helper runs sleeps, as a careless one would."""
    (tmp_path / "sleepy_module.py").write_text("import time\ntime.sleep(0.001)\nname = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BlockingError):
        import_string("sleepy_module.name", setting="test")
    assert await asyncio.to_thread(import_string, "sleepy_module.name", setting="test") == 1


@pytest.mark.parametrize("module", ["openviper/core/email/sending/single.py", "example_shop/shop/orders.py"])
async def test_a_sleep_in_any_module_of_ours_fails(module: str) -> None:
    sleeping = compile("import time; time.sleep(0.001)", TESTS.parent / module, "exec")
    with pytest.raises(BlockingError):
        exec(sleeping, {})
    await asyncio.to_thread(exec, sleeping, {})


def test_a_blocking_call_fails_under_uvicorn_too(tmp_path: Path) -> None:
    (tmp_path / "sleepy_app.py").write_text(
        "import time\n"
        "from openviper import OpenViper, Response\n"
        "app = OpenViper()\n"
        "@app.get('/')\n"
        "async def sleep(request):\n"
        "    time.sleep(0.001)\n"
        "    return Response()\n"
    )
    with Uvicorn("sleepy_app:app", tmp_path) as server:
        assert httpx.get(server.url, timeout=PATIENCE).status_code == 500
    assert any("BlockingError" in line for line in server.log)


def test_each_test_begins_without_settings() -> None:
    settings.configure(DEBUG=True)
    assert settings.DEBUG


def test_each_test_begins_without_settings_again() -> None:
    """Together with the test above: whichever runs second would fail if settings stayed."""
    settings.configure(DEBUG=True)
    assert settings.DEBUG


def test_mail_settings_of_the_environment_do_not_reach_tests(tmp_path: Path) -> None:
    code, output = run_pytest(
        tmp_path,
        "import os\n"
        "def test_environment():\n"
        "    assert not [n for n in os.environ if n.startswith(('EMAIL_', 'OPENVIPER_')) or n == 'DATABASE_URL']\n",
        EMAIL_HOST="mail.example.com",
        OPENVIPER_SETTINGS_MODULE="elsewhere",
        DATABASE_URL="postgresql://db.example.com/x",
    )
    assert code == 0, output
