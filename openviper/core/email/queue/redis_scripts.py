"""Lua scripts for what must happen in one step on Redis. Each begins with COMMON; KEYS[1] is ``<namespace>:mail:``.

Layout, below that prefix::

    job:<key>     hash: state (queued, waiting, claimed, sent, failed), turn, owner, progress, digest, payload
    blob:<sha256> an attachment that jobs refer to; of a sensitive message the digest covers the job's key, too
    open          sorted set: jobs that are not done, by the time (ms) they were accepted
    later         sorted set: jobs that wait for their next attempt, by its time (ms)
    failed        sorted set: jobs that were given up, by the time (ms) at which they were
    queues        sorted set: the queues of further mailers that have had mail; a job of theirs has the field ``queue``

A ticket is the Dramatiq message that makes a worker claim a job; it is written as Dramatiq's own script does
(``<namespace>:emails`` and ``<namespace>:emails.msgs``), and holds only the job's key and turn. Each attempt is a turn,
and only a ticket of the present one counts, so that a ticket which comes twice does nothing twice. Tickets that no
worker can process are Dramatiq's dead letters (``<namespace>:emails.XQ`` and ``<namespace>:emails.XQ.msgs``). Each
further mailer has a queue of its own for tickets, such as ``<namespace>:emails_bulk``; all else is shared.

Above ``maxmemory`` Redis refuses a command that needs memory unless the script has written before. So a script that
adds begins its writes with such a command and is refused as a whole, and one that drains begins with a DEL.

Whoever can write to Redis can write anything: a key or field that no version wrote must neither stop a script half-way,
after some of its writes, nor keep it busy.
"""

__all__ = [
    "ADD",
    "ADD_MANY",
    "CHANGE",
    "CLAIM",
    "DROP_BLOB",
    "ERASE",
    "FAIL",
    "FINISH",
    "PROBE",
    "PROBE_ADD",
    "PROMOTE",
    "PURGE",
    "RESCHEDULE",
    "RETRY_DEAD",
    "RETRY_FAILED",
]

_COMMON = """
local mail = KEYS[1]
local ns = string.sub(mail, 1, -7) -- without ':mail:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function job_of(key) return mail .. 'job:' .. key end
local function whole(value, most)
    local number = tonumber(value)
    if number and number >= 0 and number <= most and number == math.floor(number) then return number end
end
local function count(job, field)
    local number = redis.pcall('HINCRBY', job, field, 1)
    if type(number) == 'number' then return number end
    redis.pcall('HSET', job, field, 1)
    return now
end
local function mail_queue(name)
    local own = type(name) == 'string' and #name <= 47 and string.find(name, '^emails_[a-z][a-z0-9-]*$')
    return own and name or 'emails'
end
local function queue_of(job) return mail_queue(redis.pcall('HGET', job, 'queue')) end
local function ticket(key, turn, id, queue)
    local quoted = cjson.encode(id)
    return '{"queue_name":"' .. queue .. '","actor_name":"deliver_email","args":[' .. cjson.encode(key) .. ','
        .. string.format('%.0f', turn) .. ',' .. quoted
        .. '],"kwargs":{},"options":{"redis_message_id":' .. quoted .. '},"message_id":' .. quoted
        .. ',"message_timestamp":' .. string.format('%.0f', now) .. '}'
end
local function push(key, turn, queue)
    local id = key .. ':' .. count(job_of(key), 'tickets')
    redis.call('HSET', ns .. ':' .. queue .. '.msgs', id, ticket(key, turn, id, queue))
    redis.call('RPUSH', ns .. ':' .. queue, id)
end
local function remove(key, ...)
    for _, name in ipairs({...}) do redis.pcall('ZREM', mail .. name, key) end
end
local function drop_parts(job) -- of a message that shares its blobs with no other
    for i = 0, (whole(redis.call('HGET', job, 'parts'), 10000) or 0) - 1 do
        local blob = redis.call('HGET', job, 'blob' .. i)
        if blob then redis.call('DEL', mail .. 'blob:' .. blob) end
        redis.call('HDEL', job, 'part' .. i, 'blob' .. i)
    end
end
local function keep_parts(job, keep)
    for i = 0, (whole(redis.call('HGET', job, 'parts'), 10000) or 0) - 1 do
        local blob = redis.call('HGET', job, 'blob' .. i)
        if blob and redis.call('PTTL', mail .. 'blob:' .. blob) < keep then
            redis.call('PEXPIRE', mail .. 'blob:' .. blob, keep)
        end
    end
end
"""

# What adds needs all of these keys, and must find out before its first write. ``queues``: those that it adds to.
_CHECK_KEYS = """
local kinds = {
    [mail .. 'open'] = 'zset', [mail .. 'later'] = 'zset', [mail .. 'failed'] = 'zset', [mail .. 'queues'] = 'zset',
}
for _, queue in ipairs(queues) do
    kinds[ns .. ':' .. queue], kinds[ns .. ':' .. queue .. '.msgs'] = 'list', 'hash'
end
for name, kind in pairs(kinds) do
    local found = redis.call('TYPE', name).ok
    if found ~= kind and found ~= 'none' then
        return redis.error_reply('WRONGTYPE ' .. name .. ' is a ' .. found .. ', not a ' .. kind)
    end
end
"""

_DRAIN = (
    _COMMON
    + """
redis.call('DEL', mail .. 'none')
"""
)

PROBE = (
    _DRAIN
    + """
local queues = {'emails'}
local others = redis.pcall('ZRANGE', mail .. 'queues', 0, 99)
if not others.err then
    for _, name in ipairs(others) do queues[#queues + 1] = mail_queue(name) end
end
"""
    + _CHECK_KEYS
)

# Runs each command that writes in ADD, on a key of its own: a user who lacks one of them could queue nothing.
PROBE_ADD = """
local probe = KEYS[1] .. 'probe'
for _, command in ipairs({
    {'DEL', probe}, {'ZADD', probe, 1, 'x'}, {'ZREM', probe, 'x'}, {'RPUSH', probe, 'x'}, {'DEL', probe},
    {'HSET', probe, 'x', 1}, {'HINCRBY', probe, 'x', 1}, {'PEXPIRE', probe, 5000}, {'DEL', probe},
}) do
    local answer = redis.pcall(unpack(command))
    if type(answer) == 'table' and answer.err then
        if string.find(answer.err, 'user') then
            return redis.error_reply('NOPERM this user has no permissions to run the ' .. command[1] .. ' command')
        end
        return answer
    end
end
"""

# KEYS[2] of those that add is the queue: ``<namespace>:emails``, below the prefix at which a user's rights may end.
_ONE_QUEUE = """
local queue = string.sub(KEYS[2], #ns + 2)
local queues = {queue}
"""
_NOTE_QUEUE = """
if queue ~= 'emails' then redis.call('ZADD', mail .. 'queues', 0, queue) end
"""

# ARGV: deadline, key, due or 0, time to keep the parts, digest, number of blobs, (blob, its upload) each, job's fields
ADD = (
    _COMMON
    + """
if now > tonumber(ARGV[1]) then return 'late' end
"""
    + _ONE_QUEUE
    + _CHECK_KEYS
    + """
local key, due, keep, digest, blobs = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local job = job_of(key)
local found = redis.pcall('HMGET', job, 'state', 'digest')
if found[1] and found[2] and found[2] ~= digest then return 'other' end
if found[1] and found[1] ~= 'failed' then return 'known' end
for at = 7, 5 + 2 * blobs, 2 do
    if redis.call('EXISTS', mail .. 'blob:' .. ARGV[at]) == 0
        and (ARGV[at + 1] == '' or redis.call('EXISTS', ARGV[at + 1]) == 0) then return 'missing' end
end
redis.call('ZADD', mail .. 'open', now, key) -- the first write, refused above maxmemory
"""
    + _NOTE_QUEUE
    + """
for at = 7, 5 + 2 * blobs, 2 do
    local blob, upload = mail .. 'blob:' .. ARGV[at], ARGV[at + 1]
    if redis.call('EXISTS', blob) == 0 then
        redis.call('RENAME', upload, blob)
        redis.call('PEXPIRE', blob, keep)
    else
        if redis.call('PTTL', blob) < keep then redis.call('PEXPIRE', blob, keep) end
        if upload ~= '' then redis.call('UNLINK', upload) end -- another sender was faster
    end
end
redis.call('DEL', job)
for at = 7 + 2 * blobs, #ARGV, 2 do redis.call('HSET', job, ARGV[at], ARGV[at + 1]) end
redis.call('HSET', job, 'turn', 1, 'keep', keep, 'digest', digest)
redis.call('ZREM', mail .. 'failed', key)
if due > now then
    redis.call('HSET', job, 'state', 'waiting')
    redis.call('ZADD', mail .. 'later', due, key)
else
    redis.call('HSET', job, 'state', 'queued')
    push(key, 1, queue)
end
return 'queued'
"""
)

# ARGV: deadline, then for each job: key, due or 0, time to keep the parts, digest, number of values, job's fields
# Answers with one verdict for each job; all are for one queue, and none has large parts. A job is accepted with its
# ticket or not at all: the first write is refused above maxmemory, and with it the batch.
ADD_MANY = (
    _COMMON
    + """
local verdicts, fresh, seen, at = {}, {}, {}, 2
if now > tonumber(ARGV[1]) then return 'late' end
"""
    + _ONE_QUEUE
    + _CHECK_KEYS
    + """
while at <= #ARGV do
    local key, digest, values = ARGV[at], ARGV[at + 3], tonumber(ARGV[at + 4])
    local found = redis.pcall('HMGET', job_of(key), 'state', 'digest')
    local verdict = 'queued'
    if seen[key] then
        verdict = seen[key] == digest and 'known' or 'other'
    elseif found[1] and found[2] and found[2] ~= digest then
        verdict = 'other'
    elseif found[1] and found[1] ~= 'failed' then
        verdict = 'known'
    else
        seen[key] = digest
        fresh[#fresh + 1] = {key, at, found[1] or found.err}
    end
    verdicts[#verdicts + 1] = verdict
    at = at + 5 + values
end
if #fresh == 0 then return verdicts end
local open, messages, ids = {}, {}, {}
for i, each in ipairs(fresh) do open[2 * i - 1], open[2 * i] = now, each[1] end
redis.call('ZADD', mail .. 'open', unpack(open)) -- the first write, refused above maxmemory
"""
    + _NOTE_QUEUE
    + """
for _, each in ipairs(fresh) do
    local key, first = each[1], each[2]
    local job, due, digest = job_of(key), tonumber(ARGV[first + 1]), ARGV[first + 3]
    if each[3] then
        redis.call('DEL', job)
        redis.call('ZREM', mail .. 'failed', key)
    end
    redis.call(
        'HSET', job, 'turn', 1, 'keep', ARGV[first + 2], 'digest', digest,
        'state', due > now and 'waiting' or 'queued', 'tickets', due > now and 0 or 1,
        unpack(ARGV, first + 5, first + 4 + tonumber(ARGV[first + 4]))
    )
    if due > now then
        redis.call('ZADD', mail .. 'later', due, key)
    else
        local id = key .. ':1'
        ids[#ids + 1] = id
        messages[#messages + 1] = id
        messages[#messages + 1] = ticket(key, 1, id, queue)
    end
end
if #ids > 0 then
    redis.call('HSET', ns .. ':' .. queue .. '.msgs', unpack(messages))
    redis.call('RPUSH', ns .. ':' .. queue, unpack(ids))
end
return verdicts
"""
)

# ARGV: most jobs of one call
# A damaged job gets a ticket too, so that a worker records it as failed.
PROMOTE = (
    _DRAIN
    + """
local due = redis.call('ZRANGEBYSCORE', mail .. 'later', 0, now, 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do
    redis.call('ZREM', mail .. 'later', key)
    local found = redis.pcall('HMGET', job_of(key), 'state', 'turn', 'queue')
    if found[1] == 'waiting' then redis.call('HSET', job_of(key), 'state', 'queued') end
    if found.err or (found[1] and found[1] ~= 'sent' and found[1] ~= 'failed')
        or (not found[1] and redis.call('ZSCORE', mail .. 'open', key)) then
        push(key, whole(found[2], 1e15) or 0, mail_queue(found[3]))
    end
end
return #due
"""
)

# ARGV: key, turn, owner (of this one attempt), worker (as it signs in as a consumer)
# Another worker's claim is taken over only if that worker is found twice, five seconds apart, without a heartbeat:
# right after an outage of Redis no worker has one. Deaths are counted for each turn, until an attempt is recorded.
CLAIM = (
    _DRAIN
    + """
local key, turn, owner, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local job = job_of(key)
local found = redis.pcall(
    'HMGET', job, 'state', 'turn', 'owner', 'worker', 'doubt', 'progress', 'message_id', 'head', 'parts', 'queue'
)
if found.err then
    if redis.pcall('ZSCORE', mail .. 'failed', key) then return {'failed'} end
    return {'damaged', 'its job is a ' .. redis.call('TYPE', job).ok .. ' on Redis, not a hash'}
end
local state, problem, queue = found[1], '', mail_queue(found[10])
if not state then
    if redis.call('EXISTS', job) == 1 then
        problem = 'its state is missing'
    elseif type(redis.pcall('ZSCORE', mail .. 'open', key)) == 'string' then
        problem = 'its job is missing: it was deleted, or Redis has evicted it'
    else
        return {'gone'}
    end
end
if state == 'sent' or state == 'failed' then return {state} end
local present = whole(found[2], 1e15)
if not present and problem == '' then problem = 'its turn is not a number' end
if present and present ~= turn then return {'stale'} end
if state == 'claimed' and found[3] ~= owner then
    local until_ = tonumber(redis.pcall('ZSCORE', ns .. ':consumers:' .. queue, found[4] or ''))
    local alive = until_ and until_ > now
    if alive or not found[5] then
        if alive then redis.call('HDEL', job, 'doubt') else redis.call('HSET', job, 'doubt', 1) end
        redis.call('ZADD', mail .. 'later', now + (alive and 20000 or 5000), key)
        return {'busy'}
    end
    count(job, 'deaths' .. turn)
end
redis.call('HSET', job, 'state', 'claimed', 'owner', owner, 'worker', worker)
redis.call('HDEL', job, 'doubt')
remove(key, 'later')
local deaths = whole(redis.call('HGET', job, 'deaths' .. turn), 1e15) or 0
local parts = whole(found[9] or 0, 10000)
if not parts and problem == '' then problem = 'the number of its parts cannot be read' end
local answer = {'yours', queue, deaths, problem, found[6], found[7], found[8]}
for i = 0, (parts or 0) - 1 do
    local blob = redis.call('HGET', job, 'blob' .. i)
    local part
    if blob then
        part = redis.pcall('GET', mail .. 'blob:' .. blob)
        if type(part) == 'table' then part = false end
    else
        part = redis.call('HGET', job, 'part' .. i)
    end
    answer[#answer + 1] = part
end
return answer
"""
)

# ARGV: key, time to remember it, ticket, worker, 1 when its blobs are its own, queue
# Also acknowledges the ticket, as Dramatiq's script would, in the same step.
FINISH = (
    _DRAIN
    + """
local key, job = ARGV[1], job_of(ARGV[1])
local found = redis.pcall('HMGET', job, 'turn', 'digest')
if ARGV[5] == '1' and not found.err then drop_parts(job) end
redis.call('DEL', job)
redis.call('HSET', job, 'state', 'sent', 'turn', found[1] or 0)
if found[2] then redis.call('HSET', job, 'digest', found[2]) end
redis.call('PEXPIRE', job, ARGV[2])
remove(key, 'open', 'later', 'failed')
if redis.pcall('SREM', ns .. ':__acks__.' .. ARGV[4] .. '.' .. ARGV[6], ARGV[3]) == 1 then
    redis.pcall('HDEL', ns .. ':' .. ARGV[6] .. '.msgs', ARGV[3])
end
"""
)

# ARGV: key, owner, progress, delay
RESCHEDULE = (
    _DRAIN
    + """
local key, job = ARGV[1], job_of(ARGV[1])
local found = redis.call('HMGET', job, 'state', 'owner', 'turn')
if found[1] ~= 'claimed' or found[2] ~= ARGV[2] then return 0 end
redis.call('ZADD', mail .. 'later', now + ARGV[4], key)
redis.call('HSET', job, 'state', 'waiting', 'turn', (whole(found[3], 1e15) or 0) + 1, 'progress', ARGV[3])
redis.call('HDEL', job, 'owner', 'worker', 'doubt')
return 1
"""
)

# ARGV: key, owner, progress, reason, time to keep, 1 when it may have been delivered,
# the head that is left of a message whose content is not kept (of others '')
FAIL = (
    _DRAIN
    + """
local key, job, keep = ARGV[1], job_of(ARGV[1]), tonumber(ARGV[5])
local found = redis.pcall('HMGET', job, 'state', 'owner')
local damaged = found.err ~= nil
if not damaged and (found[1] ~= 'claimed' or found[2] ~= ARGV[2]) then return 0 end
remove(key, 'open', 'later')
if ARGV[7] ~= '' and not damaged then
    drop_parts(job)
    redis.call('HSET', job, 'head', ARGV[7], 'parts', 0)
end
if keep == 0 then
    redis.call('DEL', job)
    redis.call('HSET', job, 'state', 'failed')
    redis.call('PEXPIRE', job, 3600000)
    return 1
end
redis.call('ZADD', mail .. 'failed', now, key)
redis.call('PEXPIRE', job, keep)
if damaged then return 1 end
redis.call('HSET', job, 'state', 'failed', 'failed_at', now)
redis.call('HSET', job, 'progress', ARGV[3], 'reason', ARGV[4], 'uncertain', ARGV[6])
redis.call('HDEL', job, 'owner', 'worker', 'doubt')
keep_parts(job, keep)
return 1
"""
)

# ARGV: key, progress
RETRY_FAILED = (
    _DRAIN
    + """
local key, job = ARGV[1], job_of(ARGV[1])
local state = redis.pcall('HGET', job, 'state')
if type(state) == 'table' then return 0 end -- damaged: nothing to send
redis.call('ZREM', mail .. 'failed', key)
if state ~= 'failed' then return 0 end
local turn = (whole(redis.call('HGET', job, 'turn'), 1e15) or 0) + 1
redis.call('PERSIST', job)
keep_parts(job, whole(redis.call('HGET', job, 'keep'), 1e15) or 0)
redis.call('HSET', job, 'state', 'queued', 'turn', turn, 'progress', ARGV[2])
redis.call('HDEL', job, 'reason', 'failed_at', 'uncertain')
redis.call('ZADD', mail .. 'open', now, key)
push(key, turn, queue_of(job))
return 1
"""
)

# ARGV: id of the dead letter, key of its job, queue of the dead letter
RETRY_DEAD = (
    _DRAIN
    + """
local key, job = ARGV[2], job_of(ARGV[2])
local found = redis.pcall('HMGET', job, 'state', 'turn')
if not found[1] or found[1] == 'sent' or found[1] == 'failed' then return 0 end
redis.call('ZREM', ns .. ':' .. ARGV[3] .. '.XQ', ARGV[1])
redis.call('HDEL', ns .. ':' .. ARGV[3] .. '.XQ.msgs', ARGV[1])
redis.call('ZADD', mail .. 'open', 'NX', now, key)
if found[1] ~= 'waiting' then
    redis.call('HSET', job, 'state', 'queued')
    redis.call('HDEL', job, 'owner', 'worker', 'doubt')
    push(key, whole(found[2], 1e15) or 0, queue_of(job))
end
return 1
"""
)

# ARGV: key
PURGE = (
    _DRAIN
    + """
redis.call('ZREM', mail .. 'failed', ARGV[1])
local state = redis.pcall('HGET', job_of(ARGV[1]), 'state')
if state ~= 'failed' and type(state) ~= 'table' then return 0 end
return redis.call('DEL', job_of(ARGV[1]))
"""
)

# ARGV: key
ERASE = (
    _DRAIN
    + """
local key, job = ARGV[1], job_of(ARGV[1])
if redis.pcall('HGET', job, 'state') == 'claimed' then return 0 end
redis.call('DEL', job)
remove(key, 'open', 'later', 'failed')
return 1
"""
)

# ARGV: key, head and progress as they were, head, progress, reason
CHANGE = (
    _DRAIN
    + """
local job = job_of(ARGV[1])
local found = redis.call('HMGET', job, 'state', 'head', 'progress', 'reason')
if found[1] == 'claimed' or found[2] ~= ARGV[2] or (found[3] or '') ~= ARGV[3] then return 0 end
redis.call('HSET', job, 'head', ARGV[4], 'progress', ARGV[5])
if found[4] then redis.call('HSET', job, 'reason', ARGV[6]) end
return 1
"""
)

# ARGV: digest of a large part, the milliseconds for which it was to be kept when no job was found that has it
DROP_BLOB = (
    _DRAIN
    + """
local blob = mail .. 'blob:' .. ARGV[1]
if redis.call('PTTL', blob) > tonumber(ARGV[2]) then return 0 end
return redis.call('DEL', blob)
"""
)
