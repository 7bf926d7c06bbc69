"""The program of ``support.forkserver``: ``python fork_server_program.py DESCRIPTOR LIBRARY...``.

It imports the libraries, then forks a process for each request that comes through the socket ``DESCRIPTOR``: the length
of a JSON object, with the descriptors of the process's standard streams and of a socket for its state, then the object.
The socket of a process gets its process id and, at its end, its exit status, as a line each; it is reaped once the
other side has closed that socket. The server ends when the socket of requests is closed.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any


class _Server:
    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._states: dict[int, socket.socket] = {}  # of the processes that are not reaped
        self._ended: set[int] = set()
        self._wakened, self._wakening = socket.socketpair()
        self._wakening.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._requests, selectors.EVENT_READ)
        self._selector.register(self._wakened, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wakening.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # As it was inherited: a shell has what it starts in the background ignore it.
        self._interrupted = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in a terminal reaches the whole process group

    def serve(self) -> dict[str, Any]:
        """Fork for each request; returns the request in the forked process, and ends the server at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wakened:
                    self._wakened.recv(4096)
                    self._report_ended()
                elif key.fileobj is not self._requests:
                    self._selector.unregister(key.fileobj)
                    self._reap(key.data)
                elif request := self._fork():
                    return request

    def _fork(self) -> dict[str, Any] | None:
        size, descriptors, _, _ = socket.recv_fds(self._requests, 4, 4)
        if not size:
            sys.exit()
        content = b""
        while missing := int.from_bytes(size, "big") - len(content):
            content += self._requests.recv(missing)
        *streams, state = descriptors
        child = os.fork()
        if child == 0:
            self._close()
            os.close(state)
            return {**json.loads(content), "streams": streams}
        for stream in streams:
            os.close(stream)
        self._states[child] = connection = socket.socket(fileno=state)
        self._selector.register(connection, selectors.EVENT_READ, child)
        _say(connection, child)
        return None

    def _report_ended(self) -> None:
        for child in self._states.keys() - self._ended:
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._ended.add(child)
                _say(self._states[child], ended.si_status * (1 if ended.si_code == os.CLD_EXITED else -1))
                if self._states[child].fileno() == -1:
                    self._reap(child)

    def _reap(self, child: int) -> None:
        self._states[child].close()
        if child in self._ended:
            os.waitpid(child, 0)
            self._ended.remove(child)
            del self._states[child]

    def _close(self) -> None:
        """Leave a forked process nothing of the server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._interrupted)
        self._selector.close()
        for connection in (self._requests, self._wakened, self._wakening, *self._states.values()):
            connection.close()


def _say(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the other side may have closed it
        connection.sendall(b"%d\n" % number)


def _run(request: dict[str, Any], import_path: list[str]) -> None:
    """Make this process as an interpreter that was started for the program would be, and run the program."""
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, stream in enumerate(request["streams"]):
        os.dup2(stream, descriptor)
        os.close(stream)
    for name in ("stdout", "stderr"):
        setattr(sys, name, _stream(getattr(sys, name)))
        setattr(sys, f"__{name}__", getattr(sys, name))
    if "PYTHONWARNINGS" in os.environ:
        warnings.simplefilter("always", ResourceWarning)  # the only one that the other side sends here
    time.tzset()
    program, *arguments = request["command"]
    sys.argv[:] = [program, *arguments]
    sys.path[:] = [str(Path(program).resolve().parent), *import_path]
    main = types.ModuleType("__main__")
    main.__file__ = program
    sys.modules["__main__"] = main
    exec(compile(Path(program).read_text(encoding="utf-8"), program, "exec"), main.__dict__)


def _stream(before: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a standard stream with the buffers that an interpreter gives it, in place of the server's."""
    descriptor, unbuffered = before.fileno(), bool(os.environ.get("PYTHONUNBUFFERED"))
    binary = open(descriptor, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115 - open to the end
    by_line = not unbuffered and (binary.isatty() or descriptor == 2)
    return io.TextIOWrapper(binary, before.encoding, before.errors, None, by_line, write_through=unbuffered)


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules are named as libraries are
    for _library in sys.argv[2:]:
        importlib.import_module(_library)
    assert threading.active_count() == 1, threading.enumerate()  # forking would lose the others
    gc.collect()
    gc.freeze()  # else each process's collections would copy the memory that they share
    _import_path = [*sys.path]
    _run(_Server(socket.socket(fileno=int(sys.argv[1]))).serve(), _import_path)
