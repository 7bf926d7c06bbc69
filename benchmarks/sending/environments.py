"""Virtual environments for the senders, made once below ``build/benchmarks``."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["BUILD", "HERE", "Environments", "openviper_0_1_1", "python_named", "queue_environment"]

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
BUILD = PROJECT / "build" / "benchmarks"

OWN = ["-e", f"{PROJECT}[markdown]", "uvicorn", "uvloop"]
QUEUE = ["-e", f"{PROJECT}[redis,rabbitmq]", "pytest"]
PEERS = ["fastapi-mail", "Django", "aiosmtplib", "emails", "Flask-Mail"]
NODE = {
    "nodemailer": "Nodemailer",
    "nunjucks": "Nunjucks",
    "nodemailer-html-to-text": "nodemailer-html-to-text",
}
# It requires Python 3.14; older ones try it all the same, and leave it out if it does not start.
OLD = ["openviper[tasks-redis,tasks-rabbitmq]==0.1.1"]


class Environments(NamedTuple):
    """Interpreter of each group of senders, None if it is not available; ``versions`` by distribution."""

    own: str
    peers: str
    old: str | None
    node: str | None
    node_modules: Path
    versions: dict[str, str]

    @classmethod
    def make(cls, python: str, old_python: str) -> "Environments":
        """Create missing environments; ``old_python`` is the interpreter for openviper 0.1.1."""
        version = _version(python)
        versions = {"Python": version}
        own = _virtual(python, f"own-{version}", OWN, versions)
        peers = _virtual(python, f"peers-{version}", PEERS, versions)
        old = openviper_0_1_1(old_python, versions)
        node = shutil.which("node") if shutil.which("npm") else None
        modules = BUILD / "node"
        if node is not None:
            _install_node_packages(modules)
            versions["Node"] = _output([node, "--version"])
            for package, name in NODE.items():
                listed = json.loads((modules / "node_modules" / package / "package.json").read_text())
                versions[name] = listed["version"]
        return cls(own, peers, old, node, modules, versions)


def python_named(name: str) -> str:
    """Return the path of the interpreter that the command ``name`` starts.

    Raises:
        SystemExit: the command does not exist or does not run.
    """
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name}: not found")
    return _output([found, "-c", "import sys; print(sys.executable)"])


def queue_environment(python: str) -> str:
    """Return an interpreter, made from ``python``, with this component and both brokers' clients."""
    return _virtual(python, f"queue-{_version(python)}", QUEUE, {})


def openviper_0_1_1(python: str, versions: dict[str, str]) -> str | None:
    """Return an interpreter, made from ``python``, with openviper 0.1.1; None if that does not start.

    Adds its version to ``versions``.
    """
    listed: dict[str, str] = {}
    version = _version(python)
    try:
        made = _virtual(python, f"old-{version}", ["--ignore-requires-python", *OLD], listed)
        _output([made, "-I", "-c", "import openviper.core.email"])
    except subprocess.CalledProcessError:
        return None
    versions[f"openviper (on Python {version})"] = listed["openviper"]
    return made


def _version(python: str) -> str:
    return _output([python, "-c", "import platform; print(platform.python_version())"])


def _virtual(python: str, name: str, requirements: list[str], versions: dict[str, str]) -> str:
    where = BUILD / name
    made = str(where / "bin" / "python")
    done = where / "installed.json"
    if not done.exists() or json.loads(done.read_text()) != requirements:
        subprocess.run([python, "-m", "venv", "--clear", str(where)], check=True)
        subprocess.run([made, "-m", "pip", "install", "-qq", *requirements], check=True)
        done.write_text(json.dumps(requirements))
    listed = json.loads(_output([made, "-m", "pip", "list", "--format", "json"]))
    wanted = {"openviper", "openviper-email", "uvicorn", "uvloop", *map(str.lower, PEERS)}
    versions |= {each["name"]: each["version"] for each in listed if each["name"].lower() in wanted}
    return made


def _install_node_packages(where: Path) -> None:
    if all((where / "node_modules" / name).exists() for name in NODE):
        return
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *NODE], cwd=where, check=True)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
