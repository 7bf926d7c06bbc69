"""Measure a sender in its process: warm up, send for a while, and print the result."""

import asyncio
import itertools
import json
import resource
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

__all__ = ["Stopwatch", "print_result"]

_MB = 1024 * 1024


class Stopwatch:
    """Runs ``concurrency`` senders, first for ``warm`` seconds that do not count, then for ``seconds``.

    With ``messages`` it sends that many instead, after one that does not count. The first message's number is 0.
    """

    def __init__(self, *, concurrency: int, seconds: float, warm: float, messages: int | None) -> None:
        self._concurrency = concurrency
        self._seconds = seconds
        self._warm = warm
        self._messages = messages
        self._numbers = itertools.count()
        self._sent = 0

    async def run(self, send: Callable[[int], Awaitable[object]]) -> dict[str, float]:
        """Measure a coroutine that sends message ``n``."""
        lag = _LoopLag()
        await self._async_phase(send, self._warm, 1)
        memory = _Memory()
        window = _Window(self._sent)
        watch = asyncio.create_task(lag.watch()) if self._messages is not None else None
        await self._async_phase(send, self._seconds, self._messages)
        result = window.close(self._sent) | memory.close()
        if watch is not None:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            result["longest_hold_ms"] = lag.longest * 1000
        return result

    async def run_stream(self, stream: Callable[[Iterator[int]], AsyncIterator[object]]) -> dict[str, float]:
        """Measure a stream that sends a message for each number passed to it, and yields after each message."""
        for seconds, count in ((self._warm, 1), (self._seconds, self._messages)):
            memory = _Memory()
            window = _Window(self._sent)
            more = self._condition(seconds, count)
            async for _ in stream(next(self._numbers) for _ in iter(more, False)):
                self._sent += 1
        return window.close(self._sent) | memory.close()

    def run_threads(self, open_sender: Callable[[], Callable[[int], object]]) -> dict[str, float]:
        """Measure blocking senders: each thread calls ``open_sender`` once, then the function it returned."""
        senders = [open_sender() for _ in range(self._concurrency)]
        self._threads_phase(senders, self._warm, 1)
        memory = _Memory()
        window = _Window(self._sent)
        self._threads_phase(senders, self._seconds, self._messages)
        return window.close(self._sent) | memory.close()

    async def _async_phase(self, send: Callable[[int], Awaitable[object]], seconds: float, count: int | None) -> None:
        more = self._condition(seconds, count)

        async def work() -> None:
            while more():
                await send(next(self._numbers))
                self._sent += 1

        await asyncio.gather(*(work() for _ in range(self._concurrency)))

    def _threads_phase(self, senders: list[Callable[[int], object]], seconds: float, count: int | None) -> None:
        more = self._condition(seconds, count)
        counting = threading.Lock()

        def work(send: Callable[[int], object]) -> None:
            while more():
                send(next(self._numbers))
                with counting:
                    self._sent += 1

        with ThreadPoolExecutor(len(senders)) as pool:
            for _ in pool.map(work, senders):
                pass  # raises the exceptions of the threads

    def _condition(self, seconds: float, count: int | None) -> Callable[[], bool]:
        if self._messages is not None:
            left = itertools.repeat(True, count or 0)
            return lambda: next(left, False)
        end = time.perf_counter() + seconds
        return lambda: time.perf_counter() < end


class _Window:
    """Time and processor time from creation to ``close``."""

    def __init__(self, sent: int) -> None:
        self._sent = sent
        self._cpu = _cpu()
        self._start = time.perf_counter()

    def close(self, sent: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        cpu = _cpu() - self._cpu
        messages = sent - self._sent
        return {
            "sent": sent,
            "messages": messages,
            "seconds": seconds,
            "rate": messages / seconds,
            "cpu_per_1000": cpu * 1000 / messages,
        }


class _Memory:
    """Peak of the resident memory, and its growth since creation."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, proc(5)
        self._before = _status("VmRSS")

    def close(self) -> dict[str, float]:
        peak = _status("VmHWM")
        return {"peak_mb": peak / _MB, "peak_growth_mb": (peak - self._before) / _MB}


class _LoopLag:
    """Delay of a task that should run every millisecond."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def print_result(result: dict[str, float]) -> None:
    """Print the result as JSON for the parent process."""
    print(json.dumps(result), flush=True)
