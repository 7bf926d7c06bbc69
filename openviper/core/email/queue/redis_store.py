"""Keep jobs on Redis: a hash for each message, large attachments once each, and tickets for Dramatiq's workers."""

import hashlib
import itertools
import json
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import xq_name
from dramatiq.errors import DecodeError

from openviper.backoff import Backoff
from openviper.core.email.errors import InvalidMessage, QueueUnavailable
from openviper.core.email.events import DeliveryMode, Receipt
from openviper.core.email.message.storage import DamagedPayload, Payload, fingerprint
from openviper.core.email.message.validation import is_message_id
from openviper.core.email.queue import redis_scripts as scripts
from openviper.core.email.queue.found import Erased, FoundMail, Wanted
from openviper.core.email.queue.job import (
    ACTOR,
    Accepted,
    AddResult,
    ClaimedJob,
    FailedJob,
    NewJob,
    Progress,
    QueueStats,
    RejectedTicket,
    message_id_of,
)
from openviper.core.email.queue.keys import encode_receipt
from openviper.core.email.queue.names import QUEUE, configured_queues, is_mail_queue
from openviper.core.email.queue.redis_keys import ADD_WITH_KEY, RedisKeys, key_arguments, read_record
from openviper.core.email.queue.redis_traces import RedisTraces
from openviper.core.email.queue.traces import found_failed
from openviper.tasks import TaskSettings, get_broker
from openviper.tasks.encoder import BytesEncoder
from openviper.tasks.redis_broker import may_pass, presence_key, redis_client
from openviper.text import shown

__all__ = ["RedisJobStore", "translate_errors"]

logger = logging.getLogger("openviper.email")

T = TypeVar("T")

_BLOB_FROM = 64 * 1024  # bytes from which a part is stored once for all messages that have it
_MOST_PARTS = 100  # of a job that is added together with others: Lua passes some thousand arguments at most
_SLICE = 1024 * 1024  # bytes of an upload in one command, so that Redis serves others in between
_UPLOAD_KEEP = 120_000  # ms that an unfinished upload stays
_PROBE_KEPT = 1000  # milliseconds
_SEND_LIMIT = 1.0  # seconds that a send waits for one answer
_ACCEPT_WITHIN = 0.7  # seconds within which the server may accept a message: while we still wait for its answer
_CLOCK_FRESH = 10.0  # seconds for which a comparison of clocks counts
_MOST_TURNS = 10**15  # beyond, Lua's numbers are not exact
_LATEST = 253_402_300_799_000.0  # ms; the last second of the year 9999
_KEY = re.compile(r".@.+/[0-9a-f]{12}$")  # as job_key makes it
_PROMOTED = 200  # jobs at most in one call
_PAGE = 500
_MOST_QUEUES = 100  # that Redis has noted; more than any project has, whoever wrote them
_QUEUED = encode_receipt(Receipt("", DeliveryMode.QUEUED))
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
        # The server's clock minus ours, at least and at most, and when they were compared.
        self._clock: tuple[float, float, float] | None = None
        register = self._worker_client.register_script
        self._check_keys = register(scripts.PROBE)
        self._probe_add = register(scripts.PROBE_ADD)
        self._add = register(scripts.ADD)
        self._add_many = register(scripts.ADD_MANY)
        self._promote = register(scripts.PROMOTE)
        self._claim = register(scripts.CLAIM)
        self._finish = register(scripts.FINISH)
        self._reschedule = register(scripts.RESCHEDULE)
        self._fail = register(scripts.FAIL)
        self._retry_failed = register(scripts.RETRY_FAILED)
        self._retry_dead = register(scripts.RETRY_DEAD)
        self._purge = register(scripts.PURGE)
        self._add_with_key = register(ADD_WITH_KEY)
        self._keys = RedisKeys(self._prefix, self._send_client, self._latest_moment)

    def probe(self, *, draining: bool = False) -> None:
        """Ask for what a send needs, or with ``draining`` for what a worker does, which a full server grants.

        Both run a script that writes, on keys of the right types: a read-only or forbidding server refuses that.
        """
        with translate_errors():
            self._compare_clocks()
            self._check_keys(keys=[self._prefix], client=self._send_client)
            if not draining:
                key = f"{self._prefix}probe"
                self._send_client.pipeline(transaction=False).set(key, b"", px=_PROBE_KEPT).delete(key).execute()
                self._probe_add(keys=[self._prefix], client=self._send_client)

    def use_keys(self, use: Callable[[RedisKeys], T]) -> T:
        """Return what ``use`` returns for the idempotency keys on this Redis."""
        with translate_errors():
            return use(self._keys)

    def add(self, job: NewJob, *, deadline: float) -> Accepted:
        """Store the message and its ticket in one step, which the server refuses after ``deadline`` by its own clock.

        So a command that a paused server executes late does nothing. False: this very message was accepted before.
        A record: another send has its idempotency key, which else is done in the same step.

        Raises:
            InvalidMessage: another message with the same Message-ID was accepted for the same recipients.
        """
        with translate_errors():
            blobs, fields = _fields_of(job)
            uploads = dict.fromkeys(blobs, "")
            for name in blobs:
                if not self._send_client.exists(f"{self._prefix}blob:{name}"):
                    uploads[name] = self._upload(blobs[name])
            verdict = self._add_in_one_step(job, deadline, uploads, fields)
            if verdict == b"missing":  # one has expired since
                uploads = {name: self._upload(content) for name, content in blobs.items()}
                verdict = self._add_in_one_step(job, deadline, uploads, fields)
        return self._interpret(verdict, job)

    def add_many(self, jobs: Iterable[NewJob], *, deadline: float) -> Iterator[tuple[int, AddResult]]:
        """Add jobs together, but one with large attachments by itself; once Redis has failed, the rest fail at once.

        If a connection breaks, the jobs of one batch, a megabyte at most, may have been accepted without an answer.
        """
        failure = None
        for batch in _batches(jobs):
            results: list[tuple[int, AddResult]]
            if failure is not None:
                results = [(position, QueueUnavailable(failure)) for position, _ in batch]
            elif _goes_alone(batch[0][1]):
                results = [(batch[0][0], self._try_add(batch[0][1], deadline))]
            elif batch[0][1].claim is not None:
                results = self._add_with_keys(batch, deadline)
            else:
                results = self._add_together(batch, deadline)
            for position, result in results:
                if isinstance(result, QueueUnavailable):
                    failure = str(result)
                yield position, result

    def _try_add(self, job: NewJob, deadline: float) -> AddResult:
        try:
            return self.add(job, deadline=deadline)
        except (InvalidMessage, QueueUnavailable) as error:
            return error

    def _add_together(self, jobs: "list[_Positioned]", deadline: float) -> list[tuple[int, AddResult]]:
        """Add jobs of one queue, without large parts, in one script, which accepts all of them or none."""
        try:
            with translate_errors():
                arguments: list[Any] = [self._latest_moment(deadline)]
                progress, stored = None, ""
                for _, job in jobs:
                    if job.progress is not progress:  # those of one batch share it
                        progress = job.progress
                        stored = progress.to_json()
                    head, parts = job.payload.head, job.payload.parts
                    own = () if job.queue == QUEUE else ("queue", job.queue)
                    arguments += self._terms(job)
                    arguments += (2 * len(parts) + 8 + len(own), "message_id", job.message_id, "head", head)
                    arguments += ("progress", stored, "parts", len(parts), *own)
                    for number, part in enumerate(parts):
                        arguments += (f"part{number}", part)
                keys = [self._prefix, self._queue_key(jobs[0][1].queue)]
                verdicts = self._add_many(keys=keys, args=arguments, client=self._send_client)
        except QueueUnavailable as error:
            return [(position, QueueUnavailable(str(error))) for position, _ in jobs]
        if verdicts == b"late":
            verdicts = [verdicts] * len(jobs)
        return [(position, self._result(verdict, job)) for (position, job), verdict in zip(jobs, verdicts, strict=True)]

    def _add_with_keys(self, jobs: "list[_Positioned]", deadline: float) -> list[tuple[int, AddResult]]:
        """Add jobs without large parts in one round trip, each with its key in a step of its own."""
        try:
            with translate_errors():
                pipeline = self._send_client.pipeline(transaction=False)
                for _, job in jobs:
                    self._add_in_one_step(job, deadline, {}, _fields_of(job)[1], client=pipeline)
                verdicts = pipeline.execute(raise_on_error=False)
        except QueueUnavailable as error:
            return [(position, QueueUnavailable(str(error))) for position, _ in jobs]
        return [(position, self._result(verdict, job)) for (position, job), verdict in zip(jobs, verdicts, strict=True)]

    def _result(self, verdict: bytes | list[bytes] | Exception, job: NewJob) -> AddResult:
        try:
            with translate_errors():
                if isinstance(verdict, Exception):
                    raise verdict
                return self._interpret(verdict, job)
        except (InvalidMessage, QueueUnavailable) as error:
            return error

    def _interpret(self, verdict: bytes | list[bytes], job: NewJob) -> Accepted:
        if isinstance(verdict, list):
            return read_record(verdict)
        if verdict == b"other":
            raise InvalidMessage(
                f"headers: the Message-ID {job.message_id} is in use: another message with it was queued for the same "
                "recipients; give each message an id of its own, or none"
            )
        if verdict == b"late":
            self._clock = None
            raise QueueUnavailable("Redis took too long; the message was not queued")
        return verdict == b"queued"

    def _add_in_one_step(
        self, job: NewJob, deadline: float, uploads: dict[str, str], fields: dict[str, Any], client: Any = None
    ) -> Any:
        """Run the script that adds; ``client``: a pipeline that runs it later."""
        arguments = [self._latest_moment(deadline), *self._terms(job), len(uploads)]
        for pair in (*uploads.items(), *fields.items()):
            arguments += pair
        keys = [self._prefix, self._queue_key(job.queue)]
        script = self._add
        if job.claim is not None:
            script = self._add_with_key
            arguments += key_arguments(job.claim, _QUEUED)
        return script(keys=keys, args=arguments, client=self._send_client if client is None else client)

    def _latest_moment(self, deadline: float) -> int:
        """Return the server's time (ms) until which it may accept a message."""
        return self._server_time(min(deadline, time.monotonic() + _ACCEPT_WITHIN))

    def _terms(self, job: NewJob) -> list[Any]:
        due = 0
        if job.due_at is not None:
            due = self._server_time(time.monotonic() + job.due_at - time.time(), latest=True)
        return [job.key, due, int(job.keep * 1000), fingerprint(job.payload)]

    def _upload(self, content: bytes) -> str:
        name = f"{self._prefix}upload:{uuid.uuid4().hex}"
        view = memoryview(content)
        try:
            for at in range(0, len(content), _SLICE):
                pipeline = self._send_client.pipeline(transaction=False)
                pipeline.append(name, bytes(view[at : at + _SLICE]))
                pipeline.pexpire(name, _UPLOAD_KEEP)
                # An error that execute() raises has the content in its text.
                for answer in pipeline.execute(raise_on_error=False):
                    if isinstance(answer, Exception):
                        raise answer
        except redis.ResponseError:  # full: the slices before this one would take what is left for two minutes
            with suppress(redis.RedisError):
                self._send_client.unlink(name)
            raise
        return name

    def _server_time(self, moment: float, *, latest: bool = False) -> int:
        """Return the earliest or ``latest`` time (ms) that the server's clock can show at ``moment`` of ours."""
        clock = self._clock
        if clock is None or time.monotonic() - clock[2] > _CLOCK_FRESH:
            clock = self._compare_clocks()
        return math.ceil((moment + clock[1]) * 1000) if latest else int((moment + clock[0]) * 1000)

    def _compare_clocks(self) -> tuple[float, float, float]:
        asked = time.monotonic()
        seconds, micros = self._send_client.time()
        now = time.monotonic()
        server = seconds + micros / 1e6
        self._clock = server - now, server - asked, now
        return self._clock

    def promote(self) -> int:
        """Push the tickets of jobs that are due; return how many, at most a few hundred."""
        with translate_errors():
            return int(self._promote(keys=[self._prefix], args=[_PROMOTED]))

    def claim(self, key: str, turn: int, ticket: str) -> ClaimedJob | None:
        """Claim the job, unless it is done, its ticket is an old one, or another worker has it."""
        _check_ticket(key, turn, ticket)
        owner = uuid.uuid4().hex
        verdict, *answer = self._run_until_answered(self._claim, [key, turn, owner, self._broker().broker_id])
        if verdict == b"damaged":
            damage = DamagedPayload(answer[0].decode())
            return ClaimedJob(key, _message_id(None, key), Progress(time.time()), None, False, damage, (owner, ticket))
        if verdict == b"gone" and not _KEY.search(key):
            raise _rejected(key, "its ticket names no job")
        if verdict != b"yours":
            return None
        raw_queue, deaths, found, stored_progress, message_id, head, *parts = answer
        payload: Payload | None = None
        problem: DamagedPayload | None = None
        if found:
            problem = DamagedPayload(found.decode())
        elif head is None:
            problem = DamagedPayload("its head is missing")
        elif None in parts:
            problem = DamagedPayload("an attachment has expired")
            payload = Payload(head, ())  # which says whether what is left may be kept
        else:
            payload = Payload(head, tuple(parts))
        try:
            progress = Progress.from_json(stored_progress)
            progress = replace(progress, attempts=progress.attempts + deaths)
        except DamagedPayload as error:
            progress, problem = Progress(time.time()), error if problem is None else problem
        message_id, queue = _message_id(message_id, key), raw_queue.decode()
        return ClaimedJob(key, message_id, progress, payload, deaths > 0, problem, (owner, ticket), queue)

    def finish(self, job: ClaimedJob, *, remember: float) -> None:
        """Delete all but the fact that it was sent, and acknowledge its ticket."""
        broker, ticket = self._broker(), job.token[1]
        arguments = [job.key, _ms(remember), ticket, broker.broker_id, int(job.sensitive), job.queue]
        self._run_until_answered(self._finish, arguments)
        broker.settled.add((job.queue, ticket))

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Schedule its next turn."""
        arguments = [job.key, job.token[0], progress.to_json(), _ms(delay)]
        self._run_until_answered(self._reschedule, arguments)

    def fail(self, job: ClaimedJob, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:
        """Move it to the failed jobs."""
        kept = 0 if keep == 0 else _ms(keep)
        head = job.payload.without_content().head if job.payload is not None and job.sensitive else b""
        arguments = [job.key, job.token[0], progress.to_json(), reason, kept, int(uncertain), head]
        self._run_until_answered(self._fail, arguments)

    def _run_until_answered(self, script: Any, arguments: list[Any]) -> Any:
        """Repeat a script until Redis answers: an attempt's result must be recorded before the worker goes on.

        Each of these scripts does the same when it is run twice. The heartbeat logs that Redis cannot be reached.

        Raises:
            RejectedTicket: Redis refuses it for good.
        """
        backoff, logged = Backoff(first=0.2, longest=1.0), False
        while True:
            try:
                return script(keys=[self._prefix], args=arguments, client=self._thread_client)
            except redis.RedisError as error:
                _drop_arguments(error)
                if not may_pass(error):
                    raise _rejected(arguments[0], f"Redis refuses to record the attempt: {error}") from None
                if isinstance(error, redis.ResponseError) and not logged:
                    logger.warning("a worker waits until Redis accepts an attempt's result: %s", error)
                    logged = True
                threading.Event().wait(backoff.failed())

    def close(self) -> None:
        """Close the connections."""
        self._send_client.close()
        self._worker_client.close()

    def consumers(self, queue: str = QUEUE) -> int:
        """Count the workers with a recent heartbeat that consume ``queue``."""
        with translate_errors():
            return int(self._worker_client.zcount(presence_key(self._namespace, queue), self._now(), math.inf))

    def queues(self) -> tuple[str, ...]:
        """Return the queues of the mailers that the settings name, and those that have had mail."""
        with translate_errors():
            noted = self._worker_client.zrange(f"{self._prefix}queues", 0, _MOST_QUEUES - 1)
        names = (name.decode(errors="replace") for name in noted)
        return tuple(dict.fromkeys((*configured_queues(), *filter(is_mail_queue, names))))

    def stats(self, queue: str | None = None) -> QueueStats:
        """Count jobs by their state; those that could be sent now are waiting.

        Of one queue, tickets count as waiting mail; when its mail is due, or was accepted, is not known.
        """
        if queue is not None:
            return self._stats_of(queue)
        queues = self.queues()
        dead = map(self._dead, queues)
        with translate_errors():
            now = self._now()
            pipeline = self._worker_client.pipeline(transaction=False)
            pipeline.zcount(presence_key(self._namespace, QUEUE), now, math.inf)
            pipeline.zcard(f"{self._prefix}open")
            pipeline.zcard(f"{self._prefix}later")
            pipeline.zrange(f"{self._prefix}open", 0, 0, withscores=True)
            consumers, unsent, later, oldest = pipeline.execute()
            failed = sum(1 for _ in self._failed_keys()) + sum(map(self._worker_client.zcard, dead))
            waits = [self._waits(queue, now) for queue in queues]
        age = (now - oldest[0][1]) / 1000 if oldest else None
        return QueueStats(consumers, max(0, unsent - later), later, failed, age, max(filter(None, waits), default=None))

    def _waits(self, queue: str, now: float) -> float | None:
        """Return for how many seconds the first ticket of ``queue`` has waited for a worker; None without one."""
        key = self._queue_key(queue)
        ticket = self._worker_client.lindex(key, 0)
        message = None if ticket is None else self._worker_client.hget(f"{key}.msgs", ticket)
        try:
            return None if message is None else max(0.0, (now - json.loads(message)["message_timestamp"]) / 1000)
        except (ValueError, TypeError, LookupError):  # whoever can write to Redis can write anything
            return None

    def _stats_of(self, queue: str) -> QueueStats:
        with translate_errors():
            consumers = self._worker_client.zcount(presence_key(self._namespace, queue), self._now(), math.inf)
            waiting = self._worker_client.hlen(f"{self._queue_key(queue)}.msgs")
            failed = sum(self._failed_job(key).queue == queue for key in self._failed_keys())
            failed += self._worker_client.zcard(self._dead(queue))
        return QueueStats(consumers, waiting, None, failed, None)

    def failed(self, limit: int) -> list[FailedJob]:
        """Return the failed jobs that are still kept, oldest first, and the tickets that no worker could process."""
        with translate_errors():
            jobs = [self._failed_job(key) for key in itertools.islice(self._failed_keys(), limit)]
            jobs += [dead.job for dead in self._dead_letters(limit)]
        return sorted(jobs, key=lambda job: job.failed_at)[:limit]

    def find(self, wanted: Wanted) -> list[FoundMail]:
        """Return jobs in every state, those that Redis remembers as sent included, and dead letters."""
        with translate_errors():
            dead = [letter.job for letter in self._dead_letters() if letter.job.message_id == wanted.message_id]
            return [*RedisTraces(self._prefix, self._worker_client).find(wanted), *map(found_failed, dead)]

    def erase(self, address: str) -> Erased:
        """Erase an address from jobs, their large parts and idempotency keys."""
        with translate_errors():
            return RedisTraces(self._prefix, self._worker_client).erase(address)

    def retry_failed(
        self,
        message_ids: frozenset[str] | None,
        on_each: Callable[[], object] = lambda: None,
        *,
        on_dropped: Callable[[], object] = lambda: None,
    ) -> int:
        """Queue them again, from the first attempt, for the recipients who do not have the message."""
        count = 0
        with translate_errors():
            for key in list(self._failed_keys()):
                job = self._failed_job(key)
                wanted = message_ids is None or job.message_id in message_ids
                if wanted and job.content_dropped:
                    on_dropped()
                elif wanted:
                    progress = job.progress.restart(now=time.time()).to_json()
                    count += int(self._retry_failed(keys=[self._prefix], args=[key, progress]))
                on_each()
            for dead in self._dead_letters():
                if message_ids is None or dead.job.message_id in message_ids:
                    count += int(self._retry_dead(keys=[self._prefix], args=[dead.name, dead.key, dead.job.queue]))
                on_each()
        return count

    def purge_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = lambda: None) -> int:
        """Drop them; their attachments expire by themselves."""
        count = 0
        with translate_errors():
            for key in list(self._failed_keys()):
                if message_ids is None or self._failed_job(key).message_id in message_ids:
                    count += int(self._purge(keys=[self._prefix], args=[key]))
                on_each()
            for dead in self._dead_letters():
                if message_ids is None or dead.job.message_id in message_ids:
                    letters = self._dead(dead.job.queue)
                    self._worker_client.hdel(f"{letters}.msgs", dead.name)
                    count += int(self._worker_client.zrem(letters, dead.name))
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
        """Return the failed job of ``key``, whatever Redis has there by now."""
        try:
            fields = self._worker_client.hgetall(self._job(key))
        except redis.ResponseError:
            kind = self._worker_client.type(self._job(key)).decode()
            fields = {b"reason": f"cannot be read: its job is a {kind} on Redis, not a hash".encode()}
        try:
            progress = Progress.from_json(fields.get(b"progress", b""))
        except DamagedPayload:
            progress = Progress(0)
        failed_at = fields.get(b"failed_at", b"")
        if not failed_at.isdigit():
            failed_at = self._worker_client.zscore(f"{self._prefix}failed", key) or 0
        return FailedJob(
            message_id=_message_id(fields.get(b"message_id"), key.decode(errors="replace")),
            failed_at=_moment(failed_at),
            reason=fields.get(b"reason", b"").decode(errors="replace"),
            uncertain=fields.get(b"uncertain") == b"1" or bool(progress.unconfirmed),
            progress=progress,
            payload=Payload(fields[b"head"], ()) if b"head" in fields else None,
            queue=_queue(fields.get(b"queue")),
        )

    def _dead_letters(self, limit: int | None = None) -> list["_DeadLetter"]:
        """Return the tickets that no worker could process, oldest first, at most ``limit`` of each queue."""
        last = -1 if limit is None else limit - 1
        letters = []
        for queue in self.queues():
            dead = self._dead(queue)
            for name, score in self._worker_client.zrange(dead, 0, last, withscores=True):
                data = self._worker_client.hget(f"{dead}.msgs", name) or b""
                key, reason = _read_dead_ticket(data, name, queue)
                job = FailedJob(_message_id(None, key), _moment(score), reason, False, Progress(0), queue=queue)
                letters.append(_DeadLetter(name, key, job))
        return letters

    def _queue_key(self, queue: str) -> str:
        return f"{self._namespace}:{queue}"

    def _dead(self, queue: str) -> str:
        return self._queue_key(xq_name(queue))

    def _job(self, key: bytes) -> bytes:
        return self._prefix.encode() + b"job:" + key


class _DeadLetter(NamedTuple):
    """A ticket that no worker could process: its ``name`` on the queue, and the ``key`` of the job it was for."""

    name: bytes
    key: str
    job: FailedJob


def _check_ticket(key: Any, turn: Any, ticket: Any) -> None:
    """Raise RejectedTicket for arguments that no script pushed."""
    try:
        fits = type(turn) is int and 0 <= turn <= _MOST_TURNS and bool(key.encode() and ticket.encode())
    except (AttributeError, UnicodeError):
        fits = False
    if not fits:
        raise _rejected(key, "its ticket names no job")


def _rejected(key: Any, reason: str) -> RejectedTicket:
    """Log the ticket's end, and return the error that makes Dramatiq keep it as a dead letter."""
    error = RejectedTicket(f"{shown(key)}: {reason}")
    logger.error("a ticket for queued mail is kept as failed: %s", error)
    return error


def _read_dead_ticket(data: bytes, name: bytes, queue: str) -> tuple[str, str]:
    """Return the key of the job that a dead letter was for, as far as that can be read, and why it is one."""
    text = name.decode(errors="replace")
    key = text.rpartition(":")[0]  # of the names that our scripts give: a job's key and a turn
    if not _KEY.search(key):
        key = text
    try:
        message = BytesEncoder().decode(data)
    except DecodeError:
        return key, "its ticket is not a Dramatiq message"
    args = message["args"]
    if message["actor_name"] != ACTOR or message["queue_name"] != queue:
        return key, f"its ticket is not for the actor {ACTOR} on the queue {queue}"
    if not args or not isinstance(args[0], str) or not _KEY.search(args[0]):
        return key, "its ticket names no job"
    return args[0], "a worker could not process its ticket; the worker's log says why"


def _separate_large_parts(job: NewJob) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the large parts by their digest, and the fields that hold the small ones or name a digest.

    A sensitive message shares none with others, so that they can be deleted with it.
    """
    blobs: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    for number, part in enumerate(job.payload.parts):
        if len(part) >= _BLOB_FROM:
            hashed = hashlib.sha256(job.key.encode() if job.payload.sensitive else b"")
            hashed.update(part)
            digest = hashed.hexdigest()
            blobs[digest] = part
            fields[f"blob{number}"] = digest
        else:
            fields[f"part{number}"] = part
    return blobs, fields


def _fields_of(job: NewJob) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the large parts of a job by their digest, and the fields of its hash."""
    blobs, fields = _separate_large_parts(job)
    fields |= {"message_id": job.message_id, "head": job.payload.head}
    fields |= {"progress": job.progress.to_json(), "parts": len(job.payload.parts)}
    if job.queue != QUEUE:
        fields["queue"] = job.queue
    return blobs, fields


_Positioned = tuple[int, NewJob]


def _batches(jobs: Iterable[NewJob]) -> "Iterator[list[_Positioned]]":
    """Yield jobs with their positions in batches of about a megabyte, each for one queue.

    A job with large parts is a batch of its own.
    """
    batch: list[_Positioned] = []
    size = 0
    for positioned in enumerate(jobs):
        payload = positioned[1].payload
        if _goes_alone(positioned[1]):
            yield [positioned]
            continue
        if batch and _kind_of(batch[0][1]) != _kind_of(positioned[1]):
            yield batch
            batch, size = [], 0
        batch.append(positioned)
        size += len(payload.head) + sum(map(len, payload.parts))
        if size >= _SLICE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _kind_of(job: NewJob) -> tuple[str, bool]:
    """Return what the jobs of one batch have in common: the queue, and whether they have keys."""
    return job.queue, job.claim is None


def _goes_alone(job: NewJob) -> bool:
    parts = job.payload.parts
    return len(parts) > _MOST_PARTS or any(len(part) >= _BLOB_FROM for part in parts)


def _message_id(stored: bytes | None, key: str) -> str:
    """Return the stored Message-ID, or that in the key; one of its own for a key that no version made."""
    for found in (stored.decode(errors="replace") if stored else "", message_id_of(key)):
        if is_message_id(found):
            return found
    return f"<ticket-{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:16]}>"


def _queue(stored: bytes | None) -> str:
    """Return the stored queue's name; that of the default mailer's for none, and for one that no version stored."""
    name = (stored or b"").decode(errors="replace")
    return name if is_mail_queue(name) else QUEUE


def _moment(milliseconds: bytes | float) -> float:
    """Return Unix seconds that a date can show."""
    return min(max(float(milliseconds), 0.0), _LATEST) / 1000


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise QueueUnavailable for errors of the client, without what a server repeats of a command."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        _drop_arguments(error)
        raise QueueUnavailable(f"Redis: {type(error).__name__}: {error}") from error


def _drop_arguments(error: Exception) -> None:
    """Remove a command's arguments from an error, where the server repeats them: they may be content."""
    if error.args and isinstance(text := error.args[0], str) and _ARGUMENTS in text:
        error.args = (text.partition(_ARGUMENTS)[0], *error.args[1:])
