-- Stands before every script of a pool. Owns: the names of a pool's keys, the clock, fencing tokens, liveness, the
-- doorbells, and the two ways in which the record of a job leaves its place: drop_job and requeue_job.
--
-- KEYS[1] is the hash "meta" of the pool. Every other key is made from its prefix P and lies in the same slot, because
-- all of them share the hash tag {pool}. (A reaper learns which keys it needs only inside the script.)
-- Numbers may be passed to redis.call as they are; beside ".." they must go through int(): Lua writes 1e+15 otherwise.
local P = string.sub(KEYS[1], 1, -5)
local META, LEASES, SLOTS, SLOTJOBS = KEYS[1], P .. 'leases', P .. 'slots', P .. 'slotjobs'
local QUEUED, PARKED, DEAD = P .. 'queued', P .. 'parked', P .. 'dead'
local JOB, OWNED, INBOX, REPLIES = P .. 'job:', P .. 'owned:', P .. 'inbox:', P .. 'replies:'
local NOTES, PLAN = P .. 'notes:', P .. 'plan:'

local function int(number)
  return string.format('%.0f', number)
end

-- The server's clock, read once in a script. It decides everything that two processes must agree about.
local clock_us
local function now_us()
  if not clock_us then
    local time = redis.call('TIME')
    clock_us = time[1] * 1000000 + time[2]
  end
  return clock_us
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- The first of `count` (default 1) new fencing tokens that follow each other, as a number. They are never below the
-- clock in microseconds: so they also grow where the data is lost, or is that of a moment ago (a failover).
local function next_fence(count)
  count = count or 1
  local last = tonumber(redis.call('HGET', META, 'fence') or 0)
  local first = math.max(last + 1, now_us())
  redis.call('HSET', META, 'fence', int(first + count - 1))
  return first
end

-- Whether the lease of a worker is valid now. Looked up once in a script: a script that changes leases asks before.
local live_workers = {}
local function is_live(worker)
  if not worker or worker == '' then
    return false
  end
  local live = live_workers[worker]
  if live == nil then
    local until_ms = redis.call('ZSCORE', LEASES, worker)
    live = until_ms and tonumber(until_ms) > now_ms() or false
    live_workers[worker] = live
  end
  return live
end

-- Whether new work may go to a worker: alive and not about to leave.
local function takes_work(worker)
  return is_live(worker) and redis.call('SISMEMBER', P .. 'leaving', worker) == 0
end

-- Whether there is any such worker. O(workers that leave); asked only where the owner of a slot is none.
local function any_takes_work()
  local count = redis.call('ZCOUNT', LEASES, '(' .. int(now_ms()), '+inf')
  if count > 0 then
    for _, worker in ipairs(redis.call('SMEMBERS', P .. 'leaving')) do
      count = is_live(worker) and count - 1 or count
    end
  end
  return count > 0
end

-- An entry for a worker, as field, value, ... ('t', type first). No stream, no worker: then it goes nowhere.
local function ring(worker, ...)
  return redis.call('XADD', INBOX .. worker, 'NOMKSTREAM', '*', ...)
end

-- An entry for a node that waits for an answer. '' is a node that does not wait.
local function reply(node, ...)
  if node and node ~= '' then
    return redis.call('XADD', REPLIES .. node, 'NOMKSTREAM', '*', ...)
  end
end

-- The owner of a slot by the table if new work may go to it, else ''.
local function slot_owner(slot)
  local worker = redis.call('HGET', SLOTS, slot)
  return takes_work(worker) and worker or ''
end

-- The record of a job without its payload and checkpoint (the fields: keys.py), or nil.
local function load_job(key)
  local v = redis.call('HMGET', JOB .. key, 's', 'o', 'g', 'n', 'd', 'f', 'w', 'b', 'y', 'c', 'l', 'm', 'k')
  if not v[1] then
    return nil
  end
  return {s = v[1], o = v[2], g = v[3], n = v[4], d = v[5], f = v[6], w = v[7], b = v[8], y = v[9],
    c = tonumber(v[10]) or 0, l = tonumber(v[11]) or 0, m = tonumber(v[12]) or 0, k = v[13]}
end

-- The record if `worker` owns it under `fence`; else nil and why: 'N' there is none, 'F' it is another's.
local function load_owned(worker, key, fence)
  local job = load_job(key)
  if not job then
    return nil, 'N'
  elseif job.o ~= worker or job.g ~= fence then
    return nil, 'F'
  end
  return job
end

-- Whether nobody among the members as they are now knows the kind of a parked job.
local function is_unwanted(key)
  local members = redis.call('HGET', JOB .. key, 'u')
  return members and members == (redis.call('HGET', META, 'members') or '0')
end

local function count_slot(slot, change)
  if redis.call('HINCRBY', SLOTJOBS, slot, change) <= 0 then
    redis.call('HDEL', SLOTJOBS, slot)
  end
end

-- Tells who waits: nodes that asked for the stop hear `stopped`; the dispatcher of a job that was never started hears
-- `answer` ('gone', 'failed'; nil: nobody waits), with the reason where there is one.
local function tell_end(key, job, answer, reason)
  if job.w then
    for node in string.gmatch(job.w, '[^,]+') do
      reply(node, 't', 'stopped', 'k', key)
    end
  end
  if answer and not job.b then
    reply(job.f, 't', answer, 'd', job.d, 'k', key, 'e', reason or '')
  end
end

-- The job runs. At its first start its dispatcher hears `started`.
local function mark_started(worker, key, job)
  if job.b then
    redis.call('HSET', JOB .. key, 's', 'r')
  else
    redis.call('HSET', JOB .. key, 's', 'r', 'b', now_ms())
    reply(job.f, 't', 'started', 'w', worker, 'd', job.d, 'k', key, 'g', job.g)
  end
end

-- Deletes a record and everything that points to it, and tells who waits.
local function drop_job(key, job, answer, reason)
  redis.call('UNLINK', JOB .. key, NOTES .. key)
  redis.call('SREM', job.o == '' and PARKED or OWNED .. job.o, key)
  if job.s == 'q' then
    redis.call('ZREM', QUEUED, key)
  end
  count_slot(job.n, -1)
  if job.y then
    redis.call('SREM', PLAN .. job.y, key)
  end
  tell_end(key, job, answer, reason)
end

-- Copies a record to the dead letters, then drops it.
local function bury_job(key, job, reason, dead_max)
  local v = redis.call('HMGET', JOB .. key, 'p', 'z')
  local entry = {'kind', 'job', 'key', key, 'name', job.k, 'payload', v[1], 'error', reason, 'crashes', job.c,
    'losses', job.l, 'crashes_max', job.m, 'slot', job.n, 'at', int(now_ms())}
  if v[2] then
    entry[#entry + 1] = 'checkpoint'
    entry[#entry + 1] = v[2]
  end
  redis.call('XADD', DEAD, 'MAXLEN', '~', dead_max, '*', unpack(entry))
  drop_job(key, job, 'failed', reason)
end

-- A notification for a job: behind the doorbells of its owner, or beside the record while it has none.
local function pass_note(key, owner, payload)
  if owner == '' or not ring(owner, 't', 'note', 'k', key, 'p', payload) then
    redis.call('RPUSH', NOTES .. key, payload)
  end
end

-- Notifications that a worker without jobs has not used follow theirs, in order; the rest of its inbox is forgotten.
-- At most `limit` entries; whether these were all.
local function forward_notes(worker, limit)
  local entries = redis.call('XRANGE', INBOX .. worker, '-', '+', 'COUNT', limit)
  for _, entry in ipairs(entries) do
    local note = {}
    for i = 1, #entry[2], 2 do
      note[entry[2][i]] = entry[2][i + 1]
    end
    if note.t == 'note' then
      local v = redis.call('HMGET', JOB .. note.k, 's', 'o')
      if v[1] and v[1] ~= 'x' then
        pass_note(note.k, v[2], note.p)
      end
    end
    redis.call('XDEL', INBOX .. worker, entry[1])
  end
  return #entries < tonumber(limit)
end

-- Gives a record to another owner ('': nobody, it is parked): queued, under a new fencing token, rung. Notifications
-- that were kept beside it follow the doorbell. Returns the token as text.
local function requeue_job(key, job, to)
  local fence = int(next_fence())
  if job.o ~= to then
    redis.call('SREM', job.o == '' and PARKED or OWNED .. job.o, key)
  end
  redis.call('SADD', to == '' and PARKED or OWNED .. to, key)
  redis.call('HSET', JOB .. key, 's', 'q', 'o', to, 'g', fence)
  redis.call('ZADD', QUEUED, now_ms(), key)
  if to ~= '' and ring(to, 't', 'start', 'k', key, 'g', fence, 'n', job.k) then
    for _, payload in ipairs(redis.call('LRANGE', NOTES .. key, 0, -1)) do
      ring(to, 't', 'note', 'k', key, 'p', payload)
    end
    redis.call('UNLINK', NOTES .. key)
  end
  return fence
end

