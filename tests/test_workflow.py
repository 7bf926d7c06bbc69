"""What is checked before a commit and in continuous integration, and with which Python."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml
from support.patience import PATIENCE

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def job() -> dict[str, Any]:
    """Return the workflow's only job."""
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    (only,) = workflow["jobs"].values()
    return dict(only)


def find_python(folder: Path) -> str:
    """Return the interpreter that the scripts choose when ``folder`` is the first on PATH."""
    found = subprocess.run(
        ["bash", "-c", ". scripts/lib.sh && find_python"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_every_python_of_the_classifiers_is_tested_and_no_other() -> None:
    prefix = "Programming Language :: Python :: 3."
    promised = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert job()["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_it_runs_what_a_developer_runs_and_takes_no_skipped_test() -> None:
    commands = [step["run"] for step in job()["steps"] if "run" in step]
    assert "./scripts/test" in commands
    assert job()["env"]["CI"] == "true"
    assert job()["container"]["image"] == "python:${{ matrix.python }}-bookworm"


def test_actions_are_pinned_by_their_major_version() -> None:
    used = [step["uses"] for step in job()["steps"] if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


def test_scripts_take_the_first_python_on_the_path(tmp_path: Path) -> None:
    """The workflow's image has its own before Debian's."""
    (tmp_path / "python3").symlink_to(sys.executable)
    assert find_python(tmp_path) == str(tmp_path / "python3")


def test_scripts_pass_over_a_python_that_is_too_old(tmp_path: Path) -> None:
    """Here it is a program of that name that fails, as an old interpreter does when it is asked for its version."""
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "python3.13").symlink_to(sys.executable)
    assert find_python(tmp_path) == str(tmp_path / "python3.13")


def test_the_hooks_before_a_commit_check_what_lint_checks() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"], "the others are downloaded"
    hooks = [hook["name"] for repository in config["repos"] for hook in repository["hooks"]]
    assert hooks == re.findall(r'failed\+=\("(.*)"\)', (ROOT / "scripts/lint").read_text())
