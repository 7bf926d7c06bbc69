"""What an import pulls in, asked of a fresh interpreter."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support.patience import PATIENCE

ROOT = Path(__file__).parent.parent


def loaded_by(statement: str) -> set[str]:
    """The modules that are loaded after ``statement`` in an interpreter that has loaded nothing else."""
    code = f"import sys, json\n{statement}\njson.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def libraries(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


HEAVY = {"starlette", "sqlalchemy", "redis", "pika", "dramatiq", "httpx", "uvicorn", "fastapi"}


@pytest.mark.parametrize(
    "module",
    [
        "openviper.core.email",
        "openviper.core.email.message",
        "openviper.core.email.attachments",
        "openviper.core.email.backends",
    ],
)
def test_mail_loads_no_framework_database_or_broker(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert libraries(loaded) & HEAVY == set()
    assert "openviper.app" not in loaded
    assert "openviper.core.email.lint" not in loaded


def test_the_package_root_is_cheap() -> None:
    """Beside the standard library's importlib and typing only the helper for lazy names stands behind it."""
    loaded = loaded_by("import openviper")
    assert {module for module in loaded if module.startswith("openviper.")} == {"openviper.lazy"}
    assert libraries(loaded) & {*HEAVY, "asyncio", "jinja2", "pydantic", "click", "aiosmtplib", "email"} == set()


def test_the_command_line_loads_what_it_runs_only_when_it_runs_it() -> None:
    loaded = loaded_by("import openviper.cli")
    assert libraries(loaded) & {*HEAVY, "jinja2", "pydantic", "aiosmtplib"} == set()
    assert "openviper.core.email" not in loaded


def test_knowing_what_a_transaction_holds_needs_no_sqlalchemy() -> None:
    assert "sqlalchemy" not in libraries(loaded_by("import openviper.db.transaction"))


def test_the_application_class_does_not_load_mail() -> None:
    loaded = loaded_by("from openviper import OpenViper")
    assert "openviper.app" in loaded
    assert "openviper.core.email" not in loaded


def libraries_of_extras() -> set[str]:
    """Return the top-level modules of the libraries that only an extra installs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].values()
    wanted = {re.split(r"[\[><=]", line)[0].lower() for lines in extras for line in lines}
    return {
        module
        for module, distributions in metadata.packages_distributions().items()
        if wanted & {distribution.lower() for distribution in distributions} and module != "openviper"
    }


WITHOUT_EXTRAS = """
import asyncio
import sys
from pathlib import Path


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Hidden())

import openviper.cli, openviper.db, openviper.tasks, openviper.testing
from openviper import OpenViper
from openviper.conf import settings
from openviper.core.email import Email, EmailMiddleware, send_email

settings.configure(
    EMAIL={{"backend": "ConsoleBackend", "default_sender": "shop@example.com"}}, TEMPLATES_DIR={templates!r}
)
Path({templates!r}, "hello.md").write_text("# Hello {{{{ name }}}}")
OpenViper().add_extension(Email())
EmailMiddleware(OpenViper())
print(asyncio.run(send_email("ana@example.com", "Hello", template="hello.md", context={{"name": "Ana"}})))
"""


def test_the_base_install_sends_mail_without_any_extra(tmp_path: Path) -> None:
    hidden = libraries_of_extras()
    assert {"markdown", "redis", "pika", "sqlalchemy", "uvicorn"} <= hidden
    program = WITHOUT_EXTRAS.format(hidden=hidden, templates=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "Hello Ana" in done.stdout
    assert done.stdout.endswith("\nTrue\n")


def test_a_send_without_the_outbox_loads_nothing_of_it_but_the_values_of_its_rows() -> None:
    loaded = loaded_by(
        "import asyncio\n"
        "from openviper import conf\n"
        "from openviper.core.email import send_email\n"
        "conf.settings.configure(EMAIL={'backend': 'MemoryBackend', 'default_sender': 'shop@example.test'})\n"
        "asyncio.run(send_email('a@example.test', 's', text='t'))"
    )
    assert {name for name in loaded if name.startswith("openviper.db.outbox.")} == {"openviper.db.outbox.rows"}
    assert not libraries(loaded) & {"sqlalchemy", "asyncpg", "aiosqlite"}
