"""``viperctl runserver`` serves a project folder."""

import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import Cli
from support.patience import PATIENCE

PACKAGE_APP = """
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from openviper.conf import settings


async def place(request):
    return PlainTextResponse(f"{settings.GREETING} from {os.getcwd()}")


site = Starlette(routes=[Route("/", place)])
"""

MAIL_APP = """
from openviper import OpenViper
from openviper.core.email import Email

app = OpenViper()
app.add_extension(Email())
"""


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def package_project(folder: Path) -> None:
    """Replace the sample by a package that pyproject.toml names."""
    (folder / "app.py").unlink()
    (folder / "settings.py").unlink()
    (folder / "site_package").mkdir()
    (folder / "site_package" / "__init__.py").write_text("")
    (folder / "site_package" / "web.py").write_text(PACKAGE_APP)
    (folder / "site_package" / "values.py").write_text('GREETING = "hello"\n')
    (folder / "pyproject.toml").write_text(
        '[tool.openviper]\napp = "site_package.web:site"\nsettings = "site_package.values"\n'
    )


def test_it_serves_the_app_of_app_py(cli: Cli, project: Path) -> None:
    with cli.serve(project, "--port", "0") as served:
        assert served.get() == "hello from app.py"
    assert served.process.returncode == 0, served.printed
    assert "Traceback" not in served.printed


def test_a_relative_path_is_taken_from_where_the_user_is(cli: Cli, project: Path) -> None:
    with cli.serve("sample", "--port", "0") as served:
        assert served.get() == "hello from app.py"


def test_pyproject_names_application_and_settings(cli: Cli, project: Path) -> None:
    """The project's folder is where it imports from and where it runs."""
    package_project(project)
    with cli.serve(project, "--port", "0") as served:
        assert served.get() == f"hello from {project}"


def test_the_option_settings_beats_pyproject(cli: Cli, project: Path) -> None:
    package_project(project)
    (project / "other.py").write_text('GREETING = "good evening"\n')
    with cli.serve(project, "--port", "0", "--settings", "other") as served:
        assert served.get() == f"good evening from {project}"


def test_the_only_settings_py_in_a_package_is_found(cli: Cli, project: Path) -> None:
    package_project(project)
    (project / "site_package" / "values.py").rename(project / "site_package" / "settings.py")
    (project / "pyproject.toml").write_text('[tool.openviper]\napp = "site_package.web:site"\n')
    with cli.serve(project, "--port", "0") as served:
        assert served.get() == f"hello from {project}"


def test_a_given_host_and_port_are_used(cli: Cli, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with cli.serve(project, "--host", "127.0.0.1", "--port", str(port)) as served:
        assert served.address == f"http://127.0.0.1:{port}/"
        assert served.get() == "hello from app.py"


def test_without_a_port_it_serves_even_when_8000_is_taken(cli: Cli, project: Path) -> None:
    """Whichever of two takes 8000, the other one gets a free port."""
    with cli.serve(project) as first, cli.serve(project) as second:
        assert first.address != second.address
        assert first.get() == second.get() == "hello from app.py"


def test_a_taken_port_is_named(cli: Cli, project: Path, taken_port: int) -> None:
    done = cli.run("runserver", project, "--port", str(taken_port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {taken_port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_inbox_page_is_named_where_it_is_on(cli: Cli, project: Path) -> None:
    (project / "app.py").write_text(MAIL_APP)
    (project / "settings.py").write_text('DEBUG = True\nEMAIL = {"backend": "MemoryBackend"}\n')
    with cli.serve(project, "--port", "0") as served:
        assert "INFO:     mail: deferred in requests" in served.printed
        assert f"{served.address}_mail" in served.printed
        with urllib.request.urlopen(served.address + "_mail", timeout=PATIENCE) as response:
            assert response.status == 200


def test_the_inbox_page_is_not_named_where_it_is_off(cli: Cli, project: Path) -> None:
    (project / "app.py").write_text(MAIL_APP)
    (project / "settings.py").write_text('EMAIL = {"backend": "MemoryBackend"}\n')
    with cli.serve(project, "--port", "0") as served:
        pass
    assert "_mail" not in served.printed


def test_an_application_without_mail_names_no_inbox_page(cli: Cli, project: Path) -> None:
    (project / "settings.py").write_text("DEBUG = True\n")
    with cli.serve(project, "--port", "0") as served:
        pass
    assert "_mail" not in served.printed


def test_reload_serves_the_changed_application(cli: Cli, project: Path) -> None:
    with cli.serve(project, "--port", "0", "--reload") as served:
        assert served.get() == "hello from app.py"
        app = project / "app.py"
        app.write_text(app.read_text().replace("hello from", "changed in"))
        # The reloader takes its first look at some moment after the start, so one change could be too early for it.
        for attempt in range(1, int(2 * PATIENCE)):
            os.utime(app, times=(time.time() + attempt,) * 2)
            time.sleep(0.5)
            if served.get() == "changed in app.py":
                break
        assert served.get() == "changed in app.py"


def test_sigterm_ends_it_in_order(cli: Cli, project: Path) -> None:
    with cli.serve(project, "--port", "0") as served:
        os.kill(served.process.pid, signal.SIGTERM)
        served.read_until("Application shutdown complete")


def test_a_missing_folder_is_a_usage_error(cli: Cli) -> None:
    done = cli.run("runserver", "nowhere")
    assert done.returncode == 2
    assert "'nowhere' does not exist" in done.stderr


def test_a_folder_without_an_application_is_a_usage_error(cli: Cli, project: Path) -> None:
    (project / "app.py").unlink()
    done = cli.run("runserver", project)
    assert done.returncode == 2
    assert str(project) in done.stderr
    assert "[tool.openviper] app" in done.stderr


@pytest.mark.parametrize("app", ["nowhere:app", "app:nothing"])
def test_an_application_that_is_not_there_is_a_usage_error(cli: Cli, project: Path, app: str) -> None:
    (project / "pyproject.toml").write_text(f'[tool.openviper]\napp = "{app}"\n')
    done = cli.run("runserver", project)
    assert done.returncode == 2
    assert app in done.stderr
    assert "Traceback" not in done.stderr


def test_several_settings_modules_ask_for_a_choice(cli: Cli, project: Path) -> None:
    (project / "settings.py").unlink()
    for name in ("shop", "blog"):
        (project / name).mkdir()
        (project / name / "settings.py").write_text("")
    done = cli.run("runserver", project)
    assert done.returncode == 2
    assert "blog.settings, shop.settings" in done.stderr


@pytest.mark.parametrize(
    ("code", "line", "error"),
    [
        ("import os\nimport no_such_library\n", 2, "No module named 'no_such_library'"),
        ("x = 1\n\ny = x.nothing\n", 3, "AttributeError"),
        ("def broken(:\n    pass\n", 1, "SyntaxError"),
    ],
)
def test_code_that_fails_is_named_by_file_and_line(cli: Cli, project: Path, code: str, line: int, error: str) -> None:
    (project / "app.py").write_text(code)
    done = cli.run("runserver", project)
    assert done.returncode == 1
    assert f"{project / 'app.py'}, line {line}" in done.stderr
    assert error in done.stderr
    assert "openviper/cli" not in done.stderr


def test_a_settings_module_that_fails_is_named_by_file_and_line(cli: Cli, project: Path) -> None:
    (project / "settings.py").write_text("DEBUG = treu\n")
    done = cli.run("runserver", project)
    assert done.returncode == 1
    assert f"{project / 'settings.py'}, line 1" in done.stderr


def test_a_settings_module_that_is_not_there_is_named(cli: Cli, project: Path) -> None:
    done = cli.run("runserver", project, "--settings", "elsewhere")
    assert done.returncode == 1
    assert "'elsewhere'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_mail_setting_is_told_before_anything_is_served(cli: Cli, project: Path) -> None:
    (project / "app.py").write_text(MAIL_APP)
    (project / "settings.py").write_text('EMAIL = {"prot": 25}\n')
    done = cli.run("runserver", project, "--port", "0")
    assert done.returncode == 1
    assert 'EMAIL["prot"]' in done.stderr
    assert "served at" not in done.stdout
    assert "Traceback" not in done.stderr


def test_without_uvicorn_the_pip_line_is_shown(cli: Cli, project: Path) -> None:
    """A module of that name that is not there stands for a missing library."""
    (project / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    done = cli.run("runserver", project, PYTHONPATH=str(project))
    assert done.returncode == 1
    assert "pip install 'openviper-email[server]'" in done.stderr
