"""Mail servers whose Debian packages are unpacked, not installed: they run with a root folder of their own.

``scripts/test`` unpacks the packages into ``build/servers``. A server gets a copy in a temporary folder, with the
shared libraries of this machine that it needs, and sees nothing else (chroot). So root must start it, as Postfix.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

from support.certificates import ca_file, write_server_certificate
from support.maildir import StoredMessage
from support.patience import PATIENCE

__all__ = ["UnpackedServer"]

_UNPACKED = Path(__file__).parents[2] / "build" / "servers"
_SHELL = ("/bin/sh", "/bin/cat")
_FIRST_UID = 61_000  # of the users that exist for the server only
_DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}


class UnpackedServer(ABC):
    """Starts the server at ``__enter__``, on free ports of loopback; ends each of its processes at ``__exit__``."""

    host = "127.0.0.1"
    refusal_code = 550
    username = "shop"
    password = "correct horse"

    name: ClassVar[str]
    """The folder below ``build/servers``."""
    programs: ClassVar[Sequence[str]]
    """Patterns of its programs and modules, relative to that folder; the first is the one to start."""
    arguments: ClassVar[Sequence[str]]
    users: ClassVar[Sequence[str]]

    def __init__(self) -> None:
        self.port = 0

    @abstractmethod
    def configure(self) -> None:
        """Write the configuration below ``self.root``; ``self.port`` is free."""

    @abstractmethod
    def take(self, deliveries: int) -> list[StoredMessage]:
        """Wait for messages to so many recipients that were not taken yet, and return them."""

    def settings(self, **more: Any) -> dict[str, Any]:
        """EMAIL settings for this server, with ``more`` of them."""
        values = {"host": self.host, "port": self.port, "tls_ca_file": str(ca_file()), "timeout": 3 * PATIENCE}
        return values | more

    def login(self) -> dict[str, Any]:
        """EMAIL settings of a user who may log in, over STARTTLS."""
        return {"username": self.username, "password": self.password, "use_tls": True}

    def uid(self, user: str) -> int:
        """Return the number of a user of ``users``, whose group has the same."""
        return _FIRST_UID + self.users.index(user)

    @property
    def log(self) -> str:
        """The files of its log and what it has printed."""
        files = [self._output, *sorted((self.root / "var" / "log").rglob("*log*"))]
        return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())

    def wait_for(self, count: Callable[[], int], at_least: int) -> int:
        """Wait until ``count()`` is that high, and return it."""
        end = time.monotonic() + PATIENCE
        while (found := count()) < at_least:
            assert time.monotonic() < end, f"{found} instead of {at_least}:\n{self.log[-3000:]}"
            time.sleep(0.05)
        return found

    def __enter__(self) -> Self:
        unpacked = _UNPACKED / self.name
        if not (unpacked / ".unpacked").exists():
            pytest.skip(f"{self.name} is not unpacked in build/servers (scripts/test does it)")
        if os.geteuid() != 0:
            pytest.skip(f"{self.name} can be started by root only")
        self._base = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/tmp"))
        self._base.chmod(0o755)
        self._output = self._base / "output.txt"
        self.root = self._base / "root"
        try:
            self._furnish(unpacked)
            self.port = _free_port()
            self.configure()
            self._start()
            self._await_port()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def write(self, path: str, text: str) -> None:
        """Write a file below the root, and its folders."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def folder(self, path: str, user: str | None = None, mode: int = 0o755) -> Path:
        """Make a folder below the root that belongs to ``user``; None is root."""
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
        if user is not None:
            os.chown(folder, self.uid(user), self.uid(user))
        return folder

    def _furnish(self, unpacked: Path) -> None:
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / "usr" / name).mkdir(parents=True)
            (self.root / name).symlink_to(f"usr/{name}")
        shutil.copytree(unpacked, self.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("share", "etc"))
        for name, device in _DEVICES.items():
            self.folder("/dev")
            os.mknod(self.root / "dev" / name, 0o666 | 0o020000, os.makedev(*device))
            (self.root / "dev" / name).chmod(0o666)
        self.folder("/tmp", mode=0o1777)
        for folder in ("/etc", "/run", "/var/log"):
            self.folder(folder)
        if not (self.root / "var" / "run").exists():
            (self.root / "var" / "run").symlink_to("/run")
        numbers = {"root": 0} | {user: self.uid(user) for user in self.users}
        users = [f"{user}:x:{uid}:{uid}::/home/{user}:/bin/sh\n" for user, uid in numbers.items()]
        self.write("/etc/passwd", "".join(users))
        self.write("/etc/group", "".join(f"{user}:x:{uid}:\n" for user, uid in numbers.items()))
        for user in self.users:
            self.folder(f"/home/{user}", user)
        self.write("/etc/hosts", "127.0.0.1 localhost mail.test.example\n")
        write_server_certificate(self.root / "etc" / "certificate.pem")
        (self.root / "etc" / "certificate.pem").chmod(0o600)
        self._add_libraries()

    def _add_libraries(self) -> None:
        """Copy from this machine what the programs are linked with and the packages do not bring."""
        own = {str(file.parent) for file in self.root.rglob("*.so*")}
        programs = [str(file) for pattern in self.programs for file in sorted(self.root.glob(pattern))]
        for program in _SHELL:
            shutil.copy2(program, self.root / "usr" / "bin")
        done = subprocess.run(
            ["ldd", *programs, *_SHELL],
            env={"LD_LIBRARY_PATH": ":".join(sorted(own)), "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            text=True,
        )
        assert "not found" not in done.stdout, done.stdout
        words = {word for line in done.stdout.splitlines() for word in line.split() if not line.endswith(":")}
        for library in sorted(word for word in words if word.startswith("/")):
            if not library.startswith(str(self.root)):
                target = self.root / library.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(library, target)

    def _start(self) -> None:
        program = next(self.root.glob(self.programs[0])).relative_to(self.root)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                ["chroot", str(self.root), f"/{program}", *self.arguments],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await_port(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with socket.create_connection((self.host, self.port), 1) as sock:
                    sock.settimeout(PATIENCE)
                    assert sock.recv(3) == b"220"
                    sock.sendall(b"QUIT\r\n")
                    while sock.recv(1000):
                        pass
                    return
            except OSError:
                assert self._process.poll() is None, f"{self.name} has ended:\n{self.log}"
                assert time.monotonic() < end, f"{self.name} does not listen:\n{self.log}"
                time.sleep(0.02)

    def _remove(self) -> None:
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(PATIENCE)
        shutil.rmtree(self._base, ignore_errors=True)

    def _processes(self) -> list[int]:
        """Return those whose root is the server's: children that outlive the process that was started."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                # chroot into a folder of its own, as privilege separation does, is below the root.
                with contextlib.suppress(OSError):
                    if (entry / "root").readlink().is_relative_to(self.root):
                        found.append(int(entry.name))
        return found


def _free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
