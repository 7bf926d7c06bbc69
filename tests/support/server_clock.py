"""A clock for a server process that runs ahead of or behind this machine's, and is moved while the server runs.

A small library, compiled with the system's C compiler and preloaded, adds the shift to the time of day that the server
asks for. Monotonic clocks are not moved.
"""

import shutil
import struct
import subprocess
from pathlib import Path

__all__ = ["ServerClock"]

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift; /* nanoseconds */

__attribute__((constructor)) static void open_shift(void) {
    const char *path = getenv("OPENVIPER_TEST_CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long all = at->tv_sec * 1000000000LL + at->tv_nsec + *shift;
        at->tv_sec = all / 1000000000LL;
        at->tv_nsec = all % 1000000000LL;
    }
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class ServerClock:
    """Builds the library in ``folder``; without a C compiler ``movable`` is False and the clock stays right."""

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "clock-shift"
        self._library = folder / "clock.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.movable = compiler is not None
        self.seconds = 0.0
        if compiler is not None:
            source = folder / "clock.c"
            source.write_text(_SOURCE)
            self._shift.write_bytes(struct.pack("q", 0))
            subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", self._library, source], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the server has to be started."""
        if not self.movable:
            return {}
        return {"LD_PRELOAD": str(self._library), "OPENVIPER_TEST_CLOCK_SHIFT": str(self._shift)}

    def shift(self, seconds: float) -> None:
        """Set the server's time of day to this many seconds after ours; negative: before."""
        if self.movable:
            self.seconds = seconds
            with self._shift.open("r+b") as file:
                file.write(struct.pack("q", int(seconds * 1e9)))
