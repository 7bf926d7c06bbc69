"""Send requests at a steady rate to two applications in turn, so that the machine's load affects both equally."""

import asyncio
import statistics
import time

__all__ = ["Latencies", "load"]

HOST = "127.0.0.1"
_WARM = 100  # first requests to each application, which do not count


class Latencies:
    """Milliseconds from the request's first byte to the response's last byte."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []

    def percentile(self, percent: int) -> float:
        """Return the latency below which ``percent`` per cent of the responses are."""
        return statistics.quantiles(self.milliseconds, n=100, method="inclusive")[percent - 1]


class _Target:
    """An application, requested over persistent connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.latencies = Latencies()

    async def request(self, number: int) -> None:
        connection = self._idle.pop() if self._idle else await asyncio.open_connection(HOST, self._port)
        reader, writer = connection
        start = time.perf_counter()
        writer.write(b"GET /orders/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        elapsed = time.perf_counter() - start
        if b" 200 " not in head[:20] or b"%d" % number not in body:
            raise RuntimeError(f"the application answered {head[:200]!r}")
        self._idle.append(connection)
        if number > _WARM:
            self.latencies.milliseconds.append(elapsed * 1000)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def load(ports: tuple[int, ...], *, rate: float, count: int) -> list[Latencies]:
    """Send ``count`` requests to each port, ``rate`` per second, without waiting for earlier responses."""
    targets = [_Target(port) for port in ports]
    step = 1 / rate / len(targets)
    start = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as tasks:
        for index in range((count + _WARM) * len(targets)):
            await asyncio.sleep(start + index * step - asyncio.get_running_loop().time())
            number, which = divmod(index, len(targets))
            tasks.create_task(targets[which].request(number + 1))
    for target in targets:
        target.close()
    return [target.latencies for target in targets]
