"""Virtual environments for the senders, made once below ``build/benchmarks`` and used again."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["BUILD", "HERE", "Environments", "python_named"]

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
BUILD = PROJECT / "build" / "benchmarks"

OWN = ["-e", f"{PROJECT}[markdown]", "uvicorn"]
PEERS = ["fastapi-mail", "Django", "aiosmtplib", "emails", "Flask-Mail"]
# It asks for Python 3.14. Where that is not installed it is tried on the Python at hand, and left out where that fails.
OLD = ["openviper[tasks]==0.1.1"]


class Environments(NamedTuple):
    """Where each group of senders runs, None for what cannot be had here; ``versions`` by distribution."""

    own: str
    peers: str
    old: str | None
    node: str | None
    node_modules: Path
    versions: dict[str, str]

    @classmethod
    def make(cls, python: str) -> "Environments":
        """Install what is missing; ``python``: the interpreter for all but, if it must be, openviper 0.1.1."""
        version = _output([python, "-c", "import platform; print(platform.python_version())"])
        versions = {"Python": version}
        own = _virtual(python, f"own-{version}", OWN, versions)
        peers = _virtual(python, f"peers-{version}", PEERS, versions)
        old = _old(python, version, versions)
        node = shutil.which("node") if shutil.which("npm") else None
        modules = BUILD / "node"
        if node is not None:
            _install_nodemailer(modules)
            package = json.loads((modules / "node_modules/nodemailer/package.json").read_text())
            versions |= {"Node": _output([node, "--version"]), "Nodemailer": package["version"]}
        return cls(own, peers, old, node, modules, versions)


def python_named(name: str) -> str:
    """The path of the interpreter that the command ``name`` starts.

    Raises:
        SystemExit: there is no such command, or it does not run.
    """
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name}: not found")
    return _output([found, "-c", "import sys; print(sys.executable)"])


def _old(python: str, version: str, versions: dict[str, str]) -> str | None:
    asked_for = shutil.which("python3.14")
    try:
        if asked_for is not None:
            made = _virtual(asked_for, "old-3.14", OLD, versions)
        else:
            made = _virtual(python, f"old-{version}", ["--ignore-requires-python", *OLD], versions)
        _output([made, "-I", "-c", "import openviper.core.email"])
    except subprocess.CalledProcessError:
        versions.pop("openviper", None)
        return None
    return made


def _virtual(python: str, name: str, requirements: list[str], versions: dict[str, str]) -> str:
    where = BUILD / name
    made = str(where / "bin" / "python")
    done = where / "installed.json"
    if not done.exists() or json.loads(done.read_text()) != requirements:
        subprocess.run([python, "-m", "venv", "--clear", str(where)], check=True)
        subprocess.run([made, "-m", "pip", "install", "-qq", *requirements], check=True)
        done.write_text(json.dumps(requirements))
    listed = json.loads(_output([made, "-m", "pip", "list", "--format", "json"]))
    wanted = {"openviper", "openviper-email", "uvicorn", "dramatiq", *map(str.lower, PEERS)}
    versions |= {each["name"]: each["version"] for each in listed if each["name"].lower() in wanted}
    return made


def _install_nodemailer(where: Path) -> None:
    if (where / "node_modules" / "nodemailer").exists():
        return
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "nodemailer"], cwd=where, check=True)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
