"""End a server's processes when the process that has started them dies, whatever it dies of."""

import subprocess

from support.patience import PATIENCE

__all__ = ["Watchdog"]


class Watchdog:
    """Sends SIGKILL to the process group ``group`` when this process has gone without ``close``."""

    def __init__(self, group: int) -> None:
        # The pipe's only writer is this process: its death is the end of the input, which nothing else can bring about.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -9 "-$1"', "sh", str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Leave the group alone from now on."""
        self._process.kill()
        self._process.wait(PATIENCE)
        assert self._process.stdin is not None
        self._process.stdin.close()
