"""Find mail on Redis by id, reference or address, and erase an address from it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from openviper.core.email.message.storage import DamagedPayload
from openviper.core.email.queue import redis_scripts as scripts
from openviper.core.email.queue.found import Erased, FoundMail, MailState, Wanted
from openviper.core.email.queue.job import Progress, message_id_of
from openviper.core.email.queue.names import QUEUE, is_mail_queue, mailer_of
from openviper.core.email.queue.traces import (
    concern,
    describe_mail,
    erase_from_head,
    erase_from_progress,
    erase_from_receipt,
    erase_from_text,
)

__all__ = ["RedisTraces"]

_PAGE = 500
_MOST_PARTS = 10_000
_STATES: dict[bytes, MailState] = {
    b"queued": "waiting",
    b"waiting": "later",
    b"claimed": "sending",
    b"sent": "delivered",
    b"failed": "failed",
}
_FIELDS = ("state", "message_id", "head", "progress", "reason", "queue", "parts")


class _Job(NamedTuple):
    key: bytes
    state: bytes
    message_id: str
    head: bytes | None
    progress: bytes
    reason: str
    mailer: str
    parts: int


class RedisTraces:
    """Walks over all keys below ``prefix`` with SCAN, so that Redis serves others in between. All methods block."""

    def __init__(self, prefix: str, client: Any) -> None:
        self._prefix = prefix
        self._client = client
        self._erase_job = client.register_script(scripts.ERASE)
        self._change_job = client.register_script(scripts.CHANGE)
        self._drop_blob = client.register_script(scripts.DROP_BLOB)

    def find(self, wanted: Wanted) -> list[FoundMail]:
        """Return the jobs that are looked for, whatever their state."""
        found = []
        for job in self._jobs():
            if wanted.fits(job.message_id, job.head):
                due = self._client.zscore(f"{self._prefix}later", job.key)
                mail = describe_mail(
                    job.message_id,
                    _STATES.get(job.state, "waiting"),
                    job.mailer,
                    job.head,
                    _progress(job.progress),
                    None if due is None else due / 1000,
                )
                found.append(mail._replace(reason=job.reason))
        return found

    def erase(self, address: str) -> Erased:
        """Erase ``address`` from jobs, and from what is kept of idempotency keys."""
        done, blobs = Erased(), dict[bytes, int]()
        for job in self._jobs():
            how = concern(job.head, _progress(job.progress), address)
            if how == "alone":
                own = self._blobs(job)
                erased = int(self._erase_job(keys=[self._prefix], args=[job.key]))
                done = done.plus(Erased(removed=erased, busy=1 - erased))
                blobs |= own if erased else {}
            elif how == "shared":
                changed = self._change(job, address)
                done = done.plus(Erased(changed=changed, busy=1 - changed))
            elif how == "named":
                done = done.plus(Erased(named=1))
        self._drop(blobs)
        return done.plus(Erased(keys=self._erase_keys(address)))

    def _change(self, job: _Job, address: str) -> int:
        assert job.head is not None, "it names its recipients"
        progress = erase_from_progress(_progress(job.progress), address).to_json()
        head, reason = erase_from_head(job.head, address), erase_from_text(job.reason, address)
        return int(
            self._change_job(keys=[self._prefix], args=[job.key, job.head, job.progress, head, progress, reason])
        )

    def _blobs(self, job: _Job) -> dict[bytes, int]:
        """Return the job's large parts, each with the milliseconds for which it is kept from now on."""
        names = [name for name in self._blob_names(job) if name is not None]
        return {name: self._client.pttl(self._blob(name)) for name in names}

    def _blob_names(self, job: _Job) -> list[bytes | None]:
        if not job.parts:
            return []
        fields = [f"blob{number}" for number in range(job.parts)]
        names: list[bytes | None] = self._client.hmget(self._job_key(job.key), fields)
        return names

    def _drop(self, blobs: dict[bytes, int]) -> None:
        """Delete large parts that no other job has; one whose time was extended since was used by a new one."""
        if not blobs:
            return
        used = {name for job in self._jobs() for name in self._blob_names(job)}
        for name, kept in blobs.items():
            if name not in used:
                self._drop_blob(keys=[self._prefix], args=[name, kept])

    def _erase_keys(self, address: str) -> int:
        """Delete idempotency keys whose name holds the address; erase it from the receipts of others."""
        count = 0
        for key in self._scan("key:"):
            if address in key.decode(errors="replace").lower():
                count += int(self._client.delete(key))
                continue
            result = self._client.hget(key, "result")
            changed = None if result is None else erase_from_receipt(result.decode(errors="replace"), address)
            if changed is not None:
                self._client.hset(key, "result", changed)
                count += 1
        return count

    def _jobs(self) -> Iterator[_Job]:
        page: list[bytes] = []
        for name in self._scan("job:"):
            page.append(name)
            if len(page) == _PAGE:
                yield from self._read(page)
                page = []
        yield from self._read(page)

    def _read(self, names: list[bytes]) -> Iterator[_Job]:
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(name, _FIELDS)
        first = len(self._prefix) + len("job:")
        for name, fields in zip(names, pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(fields, Exception) or fields[0] is None:
                continue  # no version wrote it, or it is gone
            state, message_id, head, progress, reason, queue, parts = fields
            own = _text(queue)
            key = name[first:]
            yield _Job(
                key,
                state,
                message_id_of(key.decode(errors="replace"))
                if message_id is None
                else message_id.decode(errors="replace"),
                head,
                progress or b"",
                _text(reason),
                mailer_of(own if is_mail_queue(own) else QUEUE),
                min(int(parts), _MOST_PARTS) if parts is not None and parts.isdigit() else 0,
            )

    def _scan(self, below: str) -> Iterator[bytes]:
        pattern = "".join(f"[{each}]" if each in "*?[" else each for each in f"{self._prefix}{below}")
        seen: set[bytes] = set()
        for name in self._client.scan_iter(match=f"{pattern}*", count=_PAGE):
            if name not in seen:  # SCAN may return a key twice
                seen.add(name)
                yield name

    def _job_key(self, key: bytes) -> bytes:
        return f"{self._prefix}job:".encode() + key

    def _blob(self, name: bytes) -> bytes:
        return f"{self._prefix}blob:".encode() + name


def _text(stored: bytes | None) -> str:
    return (stored or b"").decode(errors="replace")


def _progress(stored: bytes) -> Progress:
    try:
        return Progress.from_json(stored)
    except DamagedPayload:
        return Progress(0)
