"""Lua scripts for what must happen in one step on Redis. Each begins with COMMON; KEYS[1] is the namespace.

Layout, below ``<namespace>:mail:``::

    job:<key>     hash: state (queued, waiting, claimed, sent, failed), turn, owner, progress, payload
    blob:<sha256> an attachment that jobs refer to
    open          sorted set: jobs that are not done, by the time (ms) they were accepted
    later         sorted set: jobs that wait for their next attempt, by its time (ms)
    failed        sorted set: jobs that were given up, by the time (ms) at which they were

A ticket is the Dramatiq message that makes a worker claim a job; it is written as Dramatiq's own script does
(``<namespace>:emails`` and ``<namespace>:emails.msgs``), and holds only the job's key and turn. Each attempt is a turn,
and only a ticket of the present one counts, so that a ticket which comes twice does nothing twice.
"""

__all__ = ["ADD", "CLAIM", "FAIL", "FINISH", "PROMOTE", "PURGE", "RESCHEDULE", "RETRY_FAILED"]

_COMMON = """
local ns = KEYS[1]
local mail = ns .. ':mail:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function job_of(key) return mail .. 'job:' .. key end
local function push(key, turn)
    local id = key .. ':' .. redis.call('HINCRBY', job_of(key), 'tickets', 1)
    local ticket = cjson.encode({
        queue_name = 'emails', actor_name = 'deliver_email', args = {key, turn, id}, kwargs = {},
        options = {redis_message_id = id}, message_id = id, message_timestamp = now,
    })
    redis.call('HSET', ns .. ':emails.msgs', id, ticket)
    redis.call('RPUSH', ns .. ':emails', id)
end
local function keep_parts(job, keep)
    for i = 0, (tonumber(redis.call('HGET', job, 'parts')) or 0) - 1 do
        local blob = redis.call('HGET', job, 'blob' .. i)
        if blob and redis.call('PTTL', mail .. 'blob:' .. blob) < keep then
            redis.call('PEXPIRE', mail .. 'blob:' .. blob, keep)
        end
    end
end
"""

# ARGV: deadline, key, due or 0, time to keep the parts, number of blobs, (blob, its upload) each, then the job's fields
ADD = (
    _COMMON
    + """
if now > tonumber(ARGV[1]) then return 'late' end
local key, due, keep = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local job = job_of(key)
local state = redis.call('HGET', job, 'state')
if state and state ~= 'failed' then return 'known' end
local at = 6
for _ = 1, tonumber(ARGV[5]) do
    local blob, upload = mail .. 'blob:' .. ARGV[at], ARGV[at + 1]
    if redis.call('EXISTS', blob) == 0 then
        if upload == '' or redis.call('EXISTS', upload) == 0 then return 'missing' end
        redis.call('RENAME', upload, blob)
        redis.call('PEXPIRE', blob, keep)
    else
        if redis.call('PTTL', blob) < keep then redis.call('PEXPIRE', blob, keep) end
        if upload ~= '' then redis.call('UNLINK', upload) end -- another sender was faster
    end
    at = at + 2
end
redis.call('DEL', job)
for i = at, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', job, 'turn', 1, 'keep', keep)
redis.call('ZREM', mail .. 'failed', key)
redis.call('ZADD', mail .. 'open', now, key)
if due > now then
    redis.call('HSET', job, 'state', 'waiting')
    redis.call('ZADD', mail .. 'later', due, key)
else
    redis.call('HSET', job, 'state', 'queued')
    push(key, 1)
end
return 'queued'
"""
)

# ARGV: most jobs of one call
PROMOTE = (
    _COMMON
    + """
local due = redis.call('ZRANGEBYSCORE', mail .. 'later', 0, now, 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do
    redis.call('ZREM', mail .. 'later', key)
    local found = redis.call('HMGET', job_of(key), 'state', 'turn')
    if found[1] == 'waiting' then redis.call('HSET', job_of(key), 'state', 'queued') end
    if found[1] == 'waiting' or found[1] == 'claimed' then push(key, tonumber(found[2])) end
end
return #due
"""
)

# ARGV: key, turn, owner (of this one attempt), worker (as it signs in as a consumer)
# Another worker's claim is taken over only if that worker is found twice, five seconds apart, without a heartbeat:
# right after an outage of Redis no worker has one. Deaths are counted for each turn, until an attempt is recorded.
CLAIM = (
    _COMMON
    + """
local key, turn, owner, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local job = job_of(key)
local found = redis.call(
    'HMGET', job, 'state', 'turn', 'owner', 'worker', 'doubt', 'progress', 'message_id', 'head', 'parts'
)
local state = found[1]
if not state then return {'gone'} end
if state == 'sent' or state == 'failed' then return {state} end
if tonumber(found[2]) ~= turn then return {'stale'} end
if state == 'claimed' and found[3] ~= owner then
    local until_ = redis.call('ZSCORE', ns .. ':consumers:emails', found[4])
    local alive = until_ and tonumber(until_) > now
    if alive or not found[5] then
        if alive then redis.call('HDEL', job, 'doubt') else redis.call('HSET', job, 'doubt', 1) end
        redis.call('ZADD', mail .. 'later', now + (alive and 20000 or 5000), key)
        return {'busy'}
    end
    redis.call('HINCRBY', job, 'deaths' .. turn, 1)
end
redis.call('HSET', job, 'state', 'claimed', 'owner', owner, 'worker', worker)
redis.call('HDEL', job, 'doubt')
redis.call('ZREM', mail .. 'later', key)
local deaths = tonumber(redis.call('HGET', job, 'deaths' .. turn)) or 0
local answer = {'yours', deaths, found[6], found[7], found[8]}
for i = 0, (tonumber(found[9]) or 0) - 1 do
    local blob = redis.call('HGET', job, 'blob' .. i)
    if blob then
        answer[#answer + 1] = redis.call('GET', mail .. 'blob:' .. blob)
    else
        answer[#answer + 1] = redis.call('HGET', job, 'part' .. i)
    end
end
return answer
"""
)

# ARGV: key, time to remember it, ticket, worker
# Also acknowledges the ticket, as Dramatiq's script would, in the same step.
FINISH = (
    _COMMON
    + """
local key, job = ARGV[1], job_of(ARGV[1])
local turn = redis.call('HGET', job, 'turn')
redis.call('DEL', job)
redis.call('HSET', job, 'state', 'sent', 'turn', turn or 0)
redis.call('PEXPIRE', job, ARGV[2])
redis.call('ZREM', mail .. 'open', key)
redis.call('ZREM', mail .. 'later', key)
redis.call('ZREM', mail .. 'failed', key)
if redis.call('SREM', ns .. ':__acks__.' .. ARGV[4] .. '.emails', ARGV[3]) > 0 then
    redis.call('HDEL', ns .. ':emails.msgs', ARGV[3])
end
"""
)

# ARGV: key, owner, progress, delay
RESCHEDULE = (
    _COMMON
    + """
local key, job = ARGV[1], job_of(ARGV[1])
local found = redis.call('HMGET', job, 'state', 'owner', 'turn')
if found[1] ~= 'claimed' or found[2] ~= ARGV[2] then return 0 end
redis.call('HSET', job, 'state', 'waiting', 'turn', tonumber(found[3]) + 1, 'progress', ARGV[3])
redis.call('HDEL', job, 'owner', 'worker', 'doubt')
redis.call('ZADD', mail .. 'later', now + ARGV[4], key)
return 1
"""
)

# ARGV: key, owner, progress, reason, time to keep, 1 when it may have been delivered
FAIL = (
    _COMMON
    + """
local key, job, keep = ARGV[1], job_of(ARGV[1]), tonumber(ARGV[5])
local found = redis.call('HMGET', job, 'state', 'owner')
if found[1] ~= 'claimed' or found[2] ~= ARGV[2] then return 0 end
redis.call('ZREM', mail .. 'open', key)
if keep == 0 then
    redis.call('DEL', job)
    redis.call('HSET', job, 'state', 'failed')
    redis.call('PEXPIRE', job, 3600000)
    return 1
end
redis.call('HSET', job, 'state', 'failed', 'failed_at', now)
redis.call('HSET', job, 'progress', ARGV[3], 'reason', ARGV[4], 'uncertain', ARGV[6])
redis.call('HDEL', job, 'owner', 'worker', 'doubt')
redis.call('PEXPIRE', job, keep)
keep_parts(job, keep)
redis.call('ZADD', mail .. 'failed', now, key)
return 1
"""
)

# ARGV: key, progress
RETRY_FAILED = (
    _COMMON
    + """
local key, job = ARGV[1], job_of(ARGV[1])
redis.call('ZREM', mail .. 'failed', key)
if redis.call('HGET', job, 'state') ~= 'failed' then return 0 end
local turn = redis.call('HINCRBY', job, 'turn', 1)
redis.call('PERSIST', job)
keep_parts(job, tonumber(redis.call('HGET', job, 'keep')) or 0)
redis.call('HSET', job, 'state', 'queued', 'progress', ARGV[2])
redis.call('HDEL', job, 'reason', 'failed_at', 'uncertain')
redis.call('ZADD', mail .. 'open', now, key)
push(key, turn)
return 1
"""
)

# ARGV: key
PURGE = (
    _COMMON
    + """
redis.call('ZREM', mail .. 'failed', ARGV[1])
if redis.call('HGET', job_of(ARGV[1]), 'state') ~= 'failed' then return 0 end
return redis.call('DEL', job_of(ARGV[1]))
"""
)
