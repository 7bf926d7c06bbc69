"""The fixture as a user gets it: from the wheel, in an environment and a project of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).with_name("sample_project")


def call(*command: object, cwd: Path = ROOT, code: int = 0) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PYTEST"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=5 * PATIENCE
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the built wheel, pytest, and what the sample project needs."""
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    needed = ("pytest", "pytest-xdist", "asgi-lifespan")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", f"{wheel}[db,redis]", *needed)
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__")))


def test_a_project_is_tested_with_the_installed_package(python: Path, project: Path) -> None:
    where = call(python, "-c", "import openviper; print(openviper.__file__)", cwd=project)
    assert str(python.parents[1]) in where
    assert "24 passed" in call(python, "-m", "pytest", "-q", cwd=project)


def test_it_is_tested_in_parallel(python: Path, project: Path) -> None:
    shown = call(python, "-m", "pytest", "-v", "-n", "2", cwd=project)
    assert "24 passed" in shown
    assert "[gw0]" in shown
    assert "[gw1]" in shown


def test_a_failure_shows_the_difference_and_none_of_our_code(python: Path, project: Path) -> None:
    shown = call(python, "-m", "pytest", "-q", "failing.py", cwd=project, code=1)
    assert "differs subject: wanted 'Your order 8'" in shown
    assert ">       mailbox.assert_sent(" in shown
    assert "site-packages" not in shown


def test_a_test_without_the_fixture_is_pointed_to_it(python: Path, project: Path) -> None:
    (project / "without.py").write_text(
        "import asyncio\nfrom openviper.conf import override\nfrom openviper.core.email import send_email\n"
        "def test_it():\n    with override(EMAIL={'host': '127.0.0.1', 'port': 9, 'default_sender': 'a@b.c'}):\n"
        "        asyncio.run(send_email('d@e.f', 'Hi', text='Hi'))\n"
    )
    shown = call(python, "-m", "pytest", "-q", "without.py", cwd=project, code=1)
    assert "The fixture 'mailbox' captures it instead: def test_it(mailbox)." in shown


def test_the_plugin_loads_nothing_of_mail_until_a_test_asks_for_it(python: Path, tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(
        "import sys\n\n\n"
        "def test_plain():\n"
        "    assert 'openviper.testing.plugin' in sys.modules\n"
        "    loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not loaded & {'pydantic', 'jinja2', 'starlette', 'dramatiq', 'sqlalchemy', 'aiosmtplib', 'httpx'}\n"
        "    assert not [name for name in sys.modules if name.startswith('openviper.c')]\n"
    )
    assert "1 passed" in call(python, "-m", "pytest", "-q", "test_plain.py", cwd=tmp_path)


def test_the_package_is_installed_without_pytest(python: Path) -> None:
    code = "from importlib.metadata import requires; print(*requires('openviper-email'), sep='\\n')"
    assert "pytest" not in call(python, "-c", code)
