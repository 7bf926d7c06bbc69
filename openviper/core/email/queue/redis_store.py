"""Keep jobs on Redis: a hash for each message, large attachments once each, and tickets for Dramatiq's workers."""

import hashlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import redis
from dramatiq.brokers.redis import RedisBroker

from openviper.backoff import Backoff
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.message.storage import DamagedPayload, Payload
from openviper.core.email.queue import redis_scripts as scripts
from openviper.core.email.queue.job import QUEUE, ClaimedJob, FailedJob, NewJob, Progress, QueueStats, message_id_of
from openviper.tasks import TaskSettings, get_broker
from openviper.tasks.redis_broker import presence_key, redis_client

__all__ = ["RedisJobStore"]

logger = logging.getLogger("openviper.email")

_BLOB_FROM = 64 * 1024  # bytes from which a part is stored once for all messages that have it
_SLICE = 1024 * 1024  # bytes of an upload in one command, so that Redis serves others in between
_UPLOAD_KEEP = 120_000  # ms that an unfinished upload stays
_PROBE_KEPT = 1000  # milliseconds
_SEND_LIMIT = 1.0  # seconds that a send waits for one answer
_ACCEPT_WITHIN = 0.7  # seconds within which the server may accept a message: while we still wait for its answer
_CLOCK_FRESH = 10.0  # seconds for which a comparison of clocks counts
_PROMOTED = 200  # jobs at most in one call
_PAGE = 500
_ARGUMENTS = ", with args beginning with"  # behind "unknown command", in the server's words


class RedisJobStore:
    """The job store of ``settings``; connects at first use."""

    def __init__(self, settings: TaskSettings) -> None:
        self._namespace = settings.namespace
        self._prefix = f"{settings.namespace}:mail:"
        # Any: the library's annotations allow for answers that our settings of the client rule out.
        self._send_client: Any = redis_client(settings, timeout=_SEND_LIMIT)
        self._worker_client: Any = redis_client(settings, timeout=5.0)
        self._local = threading.local()
        self._clock: tuple[float, float] | None = None  # server's minus ours (at most), and when that was compared
        register = self._worker_client.register_script
        self._add = register(scripts.ADD)
        self._promote = register(scripts.PROMOTE)
        self._claim = register(scripts.CLAIM)
        self._finish = register(scripts.FINISH)
        self._reschedule = register(scripts.RESCHEDULE)
        self._fail = register(scripts.FAIL)
        self._retry_failed = register(scripts.RETRY_FAILED)
        self._purge = register(scripts.PURGE)

    def probe(self) -> None:
        """Compare the clocks, and write a key as a send does: a full, read-only or forbidding server refuses that."""
        with _translate_errors():
            self._compare_clocks()
            key = f"{self._prefix}probe"
            self._send_client.pipeline(transaction=False).set(key, b"", px=_PROBE_KEPT).delete(key).execute()

    def add(self, job: NewJob, *, deadline: float) -> None:
        """Store the message and its ticket in one step, which the server refuses after ``deadline`` by its own clock.

        So a command that a paused server executes late does nothing.
        """
        with _translate_errors():
            blobs, fields = _separate_large_parts(job.payload)
            fields |= {"message_id": job.message_id, "head": job.payload.head}
            fields |= {"progress": job.progress.to_json(), "parts": len(job.payload.parts)}
            uploads = dict.fromkeys(blobs, "")
            for name in blobs:
                if not self._send_client.exists(f"{self._prefix}blob:{name}"):
                    uploads[name] = self._upload(blobs[name])
            verdict = self._add_in_one_step(job, deadline, uploads, fields)
            if verdict == b"missing":  # one has expired since
                uploads = {name: self._upload(content) for name, content in blobs.items()}
                verdict = self._add_in_one_step(job, deadline, uploads, fields)
        if verdict not in (b"queued", b"known"):
            self._clock = None
            raise QueueUnavailable("Redis took too long; the message was not queued")

    def _add_in_one_step(self, job: NewJob, deadline: float, uploads: dict[str, str], fields: dict[str, Any]) -> bytes:
        due = 0 if job.due_at is None else int(job.due_at * 1000)
        moment = min(deadline, time.monotonic() + _ACCEPT_WITHIN)
        arguments: list[Any] = [self._server_time(moment), job.key, due, int(job.keep * 1000), len(uploads)]
        for pair in (*uploads.items(), *fields.items()):
            arguments += pair
        answer: bytes = self._add(keys=[self._namespace], args=arguments, client=self._send_client)
        return answer

    def _upload(self, content: bytes) -> str:
        name = f"{self._prefix}upload:{uuid.uuid4().hex}"
        view = memoryview(content)
        for at in range(0, len(content), _SLICE):
            pipeline = self._send_client.pipeline(transaction=False)
            pipeline.append(name, bytes(view[at : at + _SLICE]))
            pipeline.pexpire(name, _UPLOAD_KEEP)
            for answer in pipeline.execute(raise_on_error=False):  # which would put the content into the error's text
                if isinstance(answer, Exception):
                    raise answer
        return name

    def _server_time(self, moment: float) -> int:
        """Return the earliest time (ms) that the server's clock can show at ``moment`` of ours."""
        clock = self._clock
        if clock is None or time.monotonic() - clock[1] > _CLOCK_FRESH:
            clock = self._compare_clocks()
        return int((moment + clock[0]) * 1000)

    def _compare_clocks(self) -> tuple[float, float]:
        seconds, micros = self._send_client.time()
        now = time.monotonic()
        self._clock = seconds + micros / 1e6 - now, now
        return self._clock

    def promote(self) -> int:
        """Push the tickets of jobs that are due; return how many, at most a few hundred."""
        with _translate_errors():
            return int(self._promote(keys=[self._namespace], args=[_PROMOTED]))

    def claim(self, key: str, turn: int, ticket: str) -> ClaimedJob | None:
        """Claim the job, unless it is done, its ticket is an old one, or another worker has it."""
        broker = self._broker()
        owner = uuid.uuid4().hex
        answer = self._run_until_answered(self._claim, [key, turn, owner, broker.broker_id])
        if answer[0] != b"yours":
            return None
        _, deaths, stored_progress, message_id, head, *parts = answer
        payload, problem = None, None
        if head is None:
            problem = DamagedPayload("its head is missing")
        elif None in parts:
            problem = DamagedPayload("an attachment has expired")
        else:
            payload = Payload(head, tuple(parts))
        try:
            progress = Progress.from_json(stored_progress)
            progress = replace(progress, attempts=progress.attempts + deaths)
        except DamagedPayload as error:
            progress, problem = Progress(time.time()), error
        return ClaimedJob(key, _message_id(message_id, key), progress, payload, deaths > 0, problem, (owner, ticket))

    def finish(self, job: ClaimedJob, *, remember: float) -> None:
        """Delete all but the fact that it was sent, and acknowledge its ticket."""
        broker, ticket = self._broker(), job.token[1]
        arguments = [job.key, _ms(remember), ticket, broker.broker_id]
        self._run_until_answered(self._finish, arguments)
        broker.settled.add((QUEUE, ticket))

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Schedule its next turn."""
        arguments = [job.key, job.token[0], progress.to_json(), _ms(delay)]
        self._run_until_answered(self._reschedule, arguments)

    def fail(self, job: ClaimedJob, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:
        """Move it to the failed jobs."""
        kept = 0 if keep == 0 else _ms(keep)
        arguments = [job.key, job.token[0], progress.to_json(), reason, kept, int(uncertain)]
        self._run_until_answered(self._fail, arguments)

    def _run_until_answered(self, script: Any, arguments: list[Any]) -> Any:
        """Repeat a script until Redis answers: an attempt's result must be recorded before the worker goes on.

        Each of these scripts does the same when it is run twice. The heartbeat logs that Redis cannot be reached.
        """
        backoff, logged = Backoff(first=0.2, longest=1.0), False
        while True:
            try:
                return script(keys=[self._namespace], args=arguments, client=self._thread_client)
            except redis.RedisError as error:
                _drop_arguments(error)
                if isinstance(error, redis.ResponseError) and not logged:
                    logger.warning("a worker waits until Redis accepts an attempt's result: %s", error)
                    logged = True
                threading.Event().wait(backoff.failed())

    def close(self) -> None:
        """Close the connections."""
        self._send_client.close()
        self._worker_client.close()

    def consumers(self) -> int:
        """Count the workers with a recent heartbeat."""
        with _translate_errors():
            return int(self._worker_client.zcount(presence_key(self._namespace, QUEUE), self._now(), math.inf))

    def stats(self) -> QueueStats:
        """Count jobs by their state; those that could be sent now are waiting."""
        with _translate_errors():
            now = self._now()
            pipeline = self._worker_client.pipeline(transaction=False)
            pipeline.zcount(presence_key(self._namespace, QUEUE), now, math.inf)
            pipeline.zcard(f"{self._prefix}open")
            pipeline.zcard(f"{self._prefix}later")
            pipeline.zrange(f"{self._prefix}open", 0, 0, withscores=True)
            consumers, unsent, later, oldest = pipeline.execute()
            failed = sum(1 for _ in self._failed_keys())
        age = (now - oldest[0][1]) / 1000 if oldest else None
        return QueueStats(consumers, max(0, unsent - later), later, failed, age)

    def failed(self, limit: int) -> list[FailedJob]:
        """Return the failed jobs that are still kept, oldest first."""
        with _translate_errors():
            jobs: list[FailedJob] = []
            for key in self._failed_keys():
                if len(jobs) == limit:
                    break
                jobs.append(self._failed_job(key))
            return jobs

    def retry_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = lambda: None) -> int:
        """Queue them again, from the first attempt, for the recipients who do not have the message."""
        count = 0
        with _translate_errors():
            for key in list(self._failed_keys()):
                job = self._failed_job(key)
                if message_ids is None or job.message_id in message_ids:
                    progress = job.progress.restart(now=time.time()).to_json()
                    count += int(self._retry_failed(keys=[self._namespace], args=[key, progress]))
                on_each()
        return count

    def purge_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = lambda: None) -> int:
        """Drop them; their attachments expire by themselves."""
        count = 0
        with _translate_errors():
            for key in list(self._failed_keys()):
                if message_ids is None or self._failed_job(key).message_id in message_ids:
                    count += int(self._purge(keys=[self._namespace], args=[key]))
                on_each()
        return count

    @property
    def _thread_client(self) -> Any:
        """Return a client with a connection for this thread alone; a pool took a tenth of a worker's time."""
        if not hasattr(self._local, "client"):
            self._local.client = self._worker_client.client()
        return self._local.client

    def _broker(self) -> Any:
        broker = get_broker()
        assert isinstance(broker, RedisBroker)
        return broker

    def _now(self) -> int:
        seconds, micros = self._worker_client.time()
        return int(seconds * 1000 + micros // 1000)

    def _failed_keys(self) -> Iterator[bytes]:
        """Yield the keys of failed jobs, oldest first; remove entries whose job has expired."""
        at = 0
        while keys := self._worker_client.zrange(f"{self._prefix}failed", at, at + _PAGE - 1):
            pipeline = self._worker_client.pipeline(transaction=False)
            for key in keys:
                pipeline.exists(self._job(key))
            there = pipeline.execute()
            gone = [key for key, exists in zip(keys, there, strict=True) if not exists]
            if gone:
                self._worker_client.zrem(f"{self._prefix}failed", *gone)
            yield from (key for key, exists in zip(keys, there, strict=True) if exists)
            at += len(keys) - len(gone)

    def _failed_job(self, key: bytes) -> FailedJob:
        fields = self._worker_client.hgetall(self._job(key))
        try:
            progress = Progress.from_json(fields.get(b"progress", b""))
        except DamagedPayload:
            progress = Progress(0)
        return FailedJob(
            message_id=_message_id(fields.get(b"message_id"), key.decode()),
            failed_at=int(fields.get(b"failed_at", 0)) / 1000,
            reason=fields.get(b"reason", b"").decode(),
            uncertain=fields.get(b"uncertain") == b"1" or bool(progress.unconfirmed),
            progress=progress,
            payload=Payload(fields[b"head"], ()) if b"head" in fields else None,
        )

    def _job(self, key: bytes) -> bytes:
        return self._prefix.encode() + b"job:" + key


def _separate_large_parts(payload: Payload) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the large parts by their digest, and the fields that hold the small ones or name a digest."""
    blobs: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    for number, part in enumerate(payload.parts):
        if len(part) >= _BLOB_FROM:
            digest = hashlib.sha256(part).hexdigest()
            blobs[digest] = part
            fields[f"blob{number}"] = digest
        else:
            fields[f"part{number}"] = part
    return blobs, fields


def _message_id(stored: bytes | None, key: str) -> str:
    return stored.decode(errors="replace") if stored else message_id_of(key)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        _drop_arguments(error)
        raise QueueUnavailable(f"Redis: {type(error).__name__}: {error}") from error


def _drop_arguments(error: Exception) -> None:
    """Remove a command's arguments from an error, where the server repeats them: they may be content."""
    if error.args and isinstance(text := error.args[0], str) and _ARGUMENTS in text:
        error.args = (text.partition(_ARGUMENTS)[0], *error.args[1:])
