"""What an import pulls in, asked of a fresh interpreter."""

import json
import subprocess
import sys

import pytest


def loaded_by(statement: str) -> set[str]:
    """The modules that are loaded after ``statement`` in an interpreter that has loaded nothing else."""
    code = f"import sys, json\n{statement}\njson.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
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


def test_the_package_root_is_cheap() -> None:
    """Only the standard library's importlib and typing stand behind it."""
    loaded = loaded_by("import openviper")
    assert {module for module in loaded if module.startswith("openviper.")} == set()
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
