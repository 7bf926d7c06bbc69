"""Keep idempotency keys on Redis: a hash for each, ``<namespace>:mail:key:<name>``, that expires by itself.

Its ``state`` is claimed (expires with its lease), sending (``until``: the end of its lease, in ms by the server's
clock) or done. A message is queued together with its key in one script, so that no death of a process lies between.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue.keys import KeyClaim, KeyRecord
from openviper.core.email.queue.redis_scripts import ADD

__all__ = ["ADD_WITH_KEY", "RedisKeys", "key_arguments", "read_record"]

_COMMON = """
local mail = KEYS[1]
local function key_of(name) return mail .. 'key:' .. name end
local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function record_of(name)
    local found = redis.call('HMGET', key_of(name), 'state', 'fingerprint', 'message_id', 'result', 'until')
    local state = found[1]
    if not state then return nil end
    if state == 'sending' and now_ms() > (tonumber(found[5]) or 0) then
        state = 'abandoned'
    elseif state ~= 'done' then
        state = 'in_flight'
    end
    return {state, found[2] or '', found[3] or '', found[4] or ''}
end
local function record(name, fingerprint, message_id, result, ttl)
    redis.call('DEL', key_of(name))
    redis.call('HSET', key_of(name), 'state', 'done', 'fingerprint', fingerprint, 'message_id', message_id,
        'result', result)
    redis.call('PEXPIRE', key_of(name), ttl)
end
local function hold(name, sending, lease, ttl)
    local key = key_of(name)
    if sending == '1' then
        redis.call('HSET', key, 'state', 'sending', 'until', now_ms() + lease)
        redis.call('PEXPIRE', key, lease + ttl)
    else
        redis.call('HSET', key, 'state', 'claimed')
        redis.call('PEXPIRE', key, lease)
    end
end
local function owns(name, owner)
    local found = redis.call('HMGET', key_of(name), 'state', 'owner')
    return found[1] ~= 'done' and found[2] == owner
end
"""

# As in the other scripts that must not be refused above maxmemory.
_DRAIN = (
    _COMMON
    + """
redis.call('DEL', mail .. 'none')
"""
)

# ARGV: deadline, name, fingerprint, message id, ttl, owner, lease, 1 when sending
_CLAIM = (
    _COMMON
    + """
if now_ms() > tonumber(ARGV[1]) then return 'late' end
local found = record_of(ARGV[2])
if found then return found end
redis.call('HSET', key_of(ARGV[2]), 'fingerprint', ARGV[3], 'message_id', ARGV[4], 'owner', ARGV[6])
hold(ARGV[2], ARGV[8], tonumber(ARGV[7]), tonumber(ARGV[5]))
return 'claimed'
"""
)

# ARGV: lease, then for each: name, owner, ttl, 1 when sending
_RENEW = (
    _DRAIN
    + """
local owned = {}
for at = 2, #ARGV, 4 do
    local mine = owns(ARGV[at], ARGV[at + 1])
    if mine then hold(ARGV[at], ARGV[at + 3], tonumber(ARGV[1]), tonumber(ARGV[at + 2])) end
    owned[#owned + 1] = mine and 1 or 0
end
return owned
"""
)

# ARGV: name, owner, fingerprint, message id, receipt, ttl
_FINISH = (
    _DRAIN
    + """
if redis.call('EXISTS', key_of(ARGV[1])) == 0 or owns(ARGV[1], ARGV[2]) then
    record(ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
end
"""
)

# ARGV: name, owner
_RELEASE = (
    _DRAIN
    + """
if owns(ARGV[1], ARGV[2]) then redis.call('DEL', key_of(ARGV[1])) end
"""
)

# ARGV: those of ADD, then name, fingerprint, message id, receipt, ttl
# The message is queued and its key is done, or neither. A claim of this very message is no obstacle: it was deferred
# before, and is queued instead.
ADD_WITH_KEY = (
    _COMMON
    + """
local given = #ARGV - 5
local found = record_of(ARGV[given + 1])
if found and (found[1] == 'done' or found[3] ~= ARGV[given + 3]) then return found end
local arguments = {}
for at = 1, given do arguments[at] = ARGV[at] end
local function add(ARGV)
"""
    + ADD
    + """
end
local verdict = add(arguments)
if verdict == 'queued' then record(unpack(ARGV, given + 1)) end
return verdict
"""
)


class RedisKeys:
    """Runs the scripts; every method blocks, and raises the errors of ``client``.

    ``server_time`` turns a moment of ``time.monotonic()`` into the server's time in ms, with a limit of its own.
    """

    def __init__(self, prefix: str, client: Any, server_time: Callable[[float], int]) -> None:
        self._keys = [prefix]
        self._server_time = server_time
        self._claim = client.register_script(_CLAIM)
        self._renew = client.register_script(_RENEW)
        self._finish = client.register_script(_FINISH)
        self._release = client.register_script(_RELEASE)

    def claim(self, claim: KeyClaim, *, lease: float, deadline: float) -> KeyRecord | None:
        """Claim a key, unless the server gets to it after ``deadline``; see :class:`KeyStore`.

        Raises:
            QueueUnavailable: it was too late, and the key is not claimed.
        """
        arguments = [self._server_time(deadline), claim.name, claim.fingerprint, claim.message_id, _ms(claim.ttl)]
        arguments += [claim.owner, _ms(lease), int(claim.sending)]
        answer = self._claim(keys=self._keys, args=arguments)
        if answer == b"late":
            raise QueueUnavailable("Redis took too long")
        return None if answer == b"claimed" else read_record(answer)

    def renew(self, claims: Sequence[KeyClaim], *, lease: float) -> list[bool]:
        """Begin leases anew; see :class:`KeyStore`."""
        arguments: list[Any] = [_ms(lease)]
        for claim in claims:
            arguments += [claim.name, claim.owner, _ms(claim.ttl), int(claim.sending)]
        return [bool(owned) for owned in self._renew(keys=self._keys, args=arguments)]

    def finish(self, claim: KeyClaim, result: str) -> None:
        """Record a receipt; see :class:`KeyStore`."""
        arguments = [claim.name, claim.owner, claim.fingerprint, claim.message_id, result, _ms(claim.ttl)]
        self._finish(keys=self._keys, args=arguments)

    def release(self, claim: KeyClaim) -> None:
        """Free a key; see :class:`KeyStore`."""
        self._release(keys=self._keys, args=[claim.name, claim.owner])


def key_arguments(claim: KeyClaim, result: str) -> list[Any]:
    """Return what ``ADD_WITH_KEY`` takes after the arguments of ``ADD``."""
    return [claim.name, claim.fingerprint, claim.message_id, result, _ms(claim.ttl)]


def read_record(answer: list[bytes]) -> KeyRecord:
    """Return the record that a script answers for a key that is taken."""
    state, fingerprint, message_id, result = (part.decode(errors="replace") for part in answer)
    return KeyRecord(cast("Any", state), fingerprint, message_id, result)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
