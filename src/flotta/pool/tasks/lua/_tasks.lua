-- Stands behind _common.lua before every script of tasks (and before the tick, which enqueues). Owns: where a task is,
-- and every way from one place to the next.
--
-- The record task:<id> is the truth (its fields: tasks/records.py); each state has one place that points to it:
--   queued   ready:<queue>, sorted set: priority first, then the order of enqueueing; a task that some worker did not
--            know (old code beside new): ready:?<queue>?<name>, which only workers that may know it look at (strays)
--   due      due, sorted set: ms when it is looked at again (delay, retry, reserved rate)
--   waiting  wait:<key>, sorted set: its key has as many tasks as it may have
--   blocked  after:<other id>, sets: tasks that must be done before. When the other has ended and many waited for it,
--            the rest of the set becomes 'after: <state> <number>', and ' <state> <number>' is in due until it is empty
--   running  held:<worker>, set
--   done, failed, cancelled: none; the record expires
-- Invariants: a task has one place; a task that holds a slot of its key (field h) is counted in conc once; `waiting` in
-- the hash tasks is the number of records that are queued, due, waiting or blocked; a key of wait is never empty while a
-- slot is free.
--
-- A script collects what becomes ready and what is counted, and ends with flush_tasks() or does the two steps itself.
local TASK, READY, HELD, WAIT, AFTER = P .. 'task:', P .. 'ready:', P .. 'held:', P .. 'wait:', P .. 'after:'
local DUE, IDLE, UNIQUE, CONC, RATE, TASKS, STRAYS = P .. 'due', P .. 'idle', P .. 'unique', P .. 'conc', P .. 'rate',
  P .. 'tasks', P .. 'strays'
local RESULT_TTL_MS = 600000
local REPLY_BYTES_MAX = 4096
local TOLD_MAX = 200
local IDLE_SEEN_MAX = 200
local PRIORITY_STEP = 562949953421312 -- 2^49: place in line = (9 - priority) * step + sequence number, exact in a double
local ENDED = {done = true, failed = true, cancelled = true}

local new_ready, ready_queues, counts = {}, {}, {}

local function count(name, change)
  counts[name] = (counts[name] or 0) + change
end

local function make_ready(id, queue, place)
  local list = new_ready[queue]
  if not list then
    list = {}
    new_ready[queue] = list
  end
  local n = #list
  list[n + 1] = place
  list[n + 2] = id
end

local function flush_ready()
  for queue, list in pairs(new_ready) do
    for first = 1, #list, 1000 do
      redis.call('ZADD', READY .. queue, unpack(list, first, math.min(first + 999, #list)))
    end
    ready_queues[queue] = true
  end
  new_ready = {}
end

local function flush_counts()
  for name, change in pairs(counts) do
    if change ~= 0 then
      redis.call('HINCRBY', TASKS, name, change)
    end
  end
  counts = {}
end

-- Rings an idle worker if it serves a queue that is `wanted`. One that was rung and has not come yet is marked ('*'): it is
-- not rung again, and counts among those who share what is ready. The dead are forgotten.
local function rouse(worker, queues, wanted)
  if not is_live(worker) then
    redis.call('HDEL', IDLE, worker)
  elseif string.sub(queues, 1, 1) ~= '*' and string.find(queues, wanted, 1, true) then
    redis.call('HSET', IDLE, worker, '*' .. queues)
    ring(worker, 't', 'wake')
    return true
  end
  return false
end

-- Rings up to `n` idle workers that serve `queue` (nil: any). Where most serve the same, one of the first few does;
-- else many are looked at. (Who is not found looks by itself, once a second.)
local function wake(queue, n)
  local wanted = queue and ' ' .. (string.match(queue, '^%?(.-)%?') or queue) .. ' ' or ' '
  for try = 1, 5 do
    local found = redis.call('HRANDFIELD', IDLE, try < 5 and 1 or IDLE_SEEN_MAX, 'WITHVALUES')
    if #found == 0 then
      return
    end
    for i = 1, #found, 2 do
      if rouse(found[i], found[i + 1], wanted) then
        n = n - 1
        if n == 0 then
          return
        end
      end
    end
  end
end

-- What has become ready is somebody's to fetch: rings idle workers, at most as many as there are tasks.
local function wake_idle()
  if next(ready_queues) and redis.call('HLEN', IDLE) > 0 then
    for queue in pairs(ready_queues) do
      local ready = redis.call('ZCARD', READY .. queue)
      if ready > 0 then
        wake(queue, math.min(ready, 4))
      end
    end
  end
end

local function flush_tasks()
  flush_ready()
  flush_counts()
  wake_idle()
end

-- An idle worker sleeps until the first due time it was told. An earlier one makes it look again.
local function put_due(id, at_ms)
  redis.call('ZADD', DUE, at_ms, id)
  if redis.call('ZRANGE', DUE, 0, 0)[1] == id then
    wake(nil, 1)
  end
end

local function load_task(id)
  local v = redis.call('HMGET', TASK .. id, 's', 'n', 'u', 'q', 'o', 'g', 'k', 'v', 'h', 'y', 'r', 'd', 'w', 'x', 'j', 'c',
    'a', 'l', 'm', 'un')
  if not v[1] then
    return nil
  end
  return {s = v[1], n = v[2], u = v[3], q = v[4], o = v[5], g = v[6], k = v[7], v = tonumber(v[8]), h = v[9] == '1',
    y = v[10], r = v[11], d = v[12], w = v[13], x = v[14], j = v[15], c = v[16] == '1',
    a = tonumber(v[17] or 0), l = tonumber(v[18] or 0),
    m = tonumber(v[19] or 3), un = v[20]}
end

-- Which line of ready tasks it stands in.
local function line_of(t)
  return t.un and '?' .. t.u .. '?' .. t.n or t.u
end

-- The generic cell rate algorithm (ITU-T I.371), by the server's clock, in microseconds. Reserves the next run for
-- `spec` = "<interval>:<burst>:<key>" and returns from when on it may be. The set holds theoretical arrival times;
-- one that has passed says no more than a missing one, and is swept here and with the due tasks.
local rates_swept = false
local function sweep_rates()
  if not rates_swept then
    rates_swept = true
    redis.call('ZREMRANGEBYSCORE', RATE, '-inf', int(now_us()))
  end
end

local function reserve(spec)
  sweep_rates()
  local interval, burst, key = string.match(spec, '^(%d+):(%d+):(.*)$')
  interval = tonumber(interval)
  local now = now_us()
  local arrival = math.max(tonumber(redis.call('ZSCORE', RATE, key) or now), now)
  redis.call('ZADD', RATE, arrival + interval, key)
  return arrival - (tonumber(burst) - 1) * interval
end

-- Tasks of a key with one slot run in the order of enqueueing, whatever their priorities.
local function wait_place(t)
  local place = tonumber(t.q)
  return t.v == 1 and place % PRIORITY_STEP or place
end

local function take_slot(id, t)
  if redis.call('HINCRBY', CONC, t.k, 1) <= t.v then
    return true
  end
  redis.call('HINCRBY', CONC, t.k, -1)
  redis.call('ZADD', WAIT .. t.k, wait_place(t), id)
  return false
end

-- Gives a task its place and returns its state; the caller writes s, h and c of the record. Sets t.h and t.c.
local function place_task(id, t)
  if t.k and not t.h then
    if not take_slot(id, t) then
      return 'waiting'
    end
    t.h = true
  end
  if t.j and not t.c then
    t.c = true
    local at_us = reserve(t.j)
    if at_us > now_us() then
      put_due(id, math.ceil(at_us / 1000))
      return 'due'
    end
  end
  if t.un then
    redis.call('SADD', STRAYS, line_of(t))
  end
  make_ready(id, line_of(t), t.q)
  return 'queued'
end

-- place_task for a record that exists.
local function admit(id, t)
  local state = place_task(id, t)
  redis.call('HSET', TASK .. id, 's', state, 'h', t.h and '1' or '', 'c', t.c and '1' or '')
end

-- Takes a slot back and hands it to the first that waits for it.
local function release_slot(id, t)
  if not t.h then
    return
  end
  t.h = false
  redis.call('HSET', TASK .. id, 'h', '')
  local used = redis.call('HINCRBY', CONC, t.k, -1)
  if used <= 0 then
    redis.call('HDEL', CONC, t.k)
  end
  local first = redis.call('ZRANGE', WAIT .. t.k, 0, 0)[1]
  while first do
    redis.call('ZREM', WAIT .. t.k, first)
    local other = load_task(first)
    if other and other.s == 'waiting' then
      if used >= other.v then
        redis.call('ZADD', WAIT .. t.k, wait_place(other), first)
        return
      end
      admit(first, other)
      used = used + 1
    end
    first = redis.call('ZRANGE', WAIT .. t.k, 0, 0)[1]
  end
end

-- Tells some of the set `waiting` that the task which they come after has ended. Whether there are more. They go through
-- due, so that one script never has to place them all.
local function tell_some(waiting, state)
  for _, other in ipairs(redis.call('SPOP', waiting, TOLD_MAX)) do
    local v = redis.call('HMGET', TASK .. other, 's', 'dl', 'at')
    if v[1] == 'blocked' then
      if state ~= 'done' then
        redis.call('HSET', TASK .. other, 's', 'due', 'x', '1', 'f', '1')
        put_due(other, now_ms())
      elseif redis.call('HINCRBY', TASK .. other, 'b', -1) <= 0 then
        redis.call('HSET', TASK .. other, 's', 'due')
        put_due(other, math.max(now_ms() + tonumber(v[2] or 0), tonumber(v[3] or 0)))
      end
    end
  end
  return redis.call('EXISTS', waiting) == 1
end

local function tell_dependents(id, state)
  if tell_some(AFTER .. id, state) then
    local rest = ' ' .. state .. ' ' .. int(redis.call('HINCRBY', TASKS, 'seq', 1)) -- the id may come again before its end
    redis.call('RENAME', AFTER .. id, AFTER .. rest)
    put_due(rest, now_ms())
  end
end

-- How it failed is told in full if it is not kept: whoever waits could not ask for it.
local function tell_waiters(id, t, state, value)
  local kept = t.r ~= '0' or state ~= 'done'
  local bytes_max = t.r == '0' and math.huge or REPLY_BYTES_MAX
  for node in string.gmatch(t.w, '[^,]+') do
    if kept and #value <= bytes_max then
      reply(node, 't', 'result', 'i', id, 's', state, 'p', value)
    else
      reply(node, 't', 'result', 'i', id, 's', state)
    end
  end
end

-- The end of a task. `value`: its result, or how it failed. The caller has taken it from its place.
local function end_task(id, t, state, value)
  release_slot(id, t)
  if t.y and redis.call('HGET', UNIQUE, t.y) == id then
    redis.call('HDEL', UNIQUE, t.y)
  end
  local ttl_ms = tonumber(t.r or RESULT_TTL_MS)
  if ttl_ms <= 0 then
    redis.call('UNLINK', TASK .. id)
  else
    redis.call('HSET', TASK .. id, 's', state, 'z', value, 'p', '')
    redis.call('PEXPIRE', TASK .. id, int(ttl_ms))
  end
  if t.w then
    tell_waiters(id, t, state, value)
  end
  if t.d then
    tell_dependents(id, state)
  end
  count(state, 1)
end

-- What a dead letter needs to become the task again.
local KEPT = {'u', 'q', 'k', 'v', 'y', 'r', 'j', 'm', 'op'}

local function bury_task(id, t, reason, dead_max)
  local entry = {'kind', 'task', 'key', id, 'name', t.n, 'payload', redis.call('HGET', TASK .. id, 'p'), 'error', reason,
    'attempts', t.a + t.l, 'at', int(now_ms())}
  local kept = redis.call('HMGET', TASK .. id, unpack(KEPT))
  for i, field in ipairs(KEPT) do
    if kept[i] then
      entry[#entry + 1] = field
      entry[#entry + 1] = kept[i]
    end
  end
  redis.call('XADD', DEAD, 'MAXLEN', '~', dead_max, '*', unpack(entry))
end

-- A task that was running goes back to its place in line, without a new charge to its rate, after `delay_ms`.
local function give_back(id, t, delay_ms)
  count('waiting', 1)
  t.c = true
  if delay_ms > 0 then
    redis.call('HSET', TASK .. id, 's', 'due', 'c', '1')
    put_due(id, now_ms() + delay_ms)
  else
    admit(id, t)
  end
end

-- After a failure. A key with one slot keeps it meanwhile, so that no later task of the key overtakes.
local function retry(id, t, delay_ms)
  count('waiting', 1)
  t.c = false
  if t.k and t.v > 1 then
    release_slot(id, t)
  end
  if delay_ms > 0 then
    redis.call('HSET', TASK .. id, 's', 'due', 'c', '')
    put_due(id, now_ms() + delay_ms)
  else
    admit(id, t)
  end
end

-- Places up to `limit` tasks whose time has come. Returns how many.
local function pump(limit)
  local now = int(now_ms())
  local ids = redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, limit)
  if #ids == 0 then
    return 0
  end
  redis.call('ZREM', DUE, unpack(ids))
  sweep_rates()
  for _, id in ipairs(ids) do
    local ended = string.match(id, '^ (%l+) ')
    local t = not ended and load_task(id)
    if ended and tell_some(AFTER .. id, ended) then
      put_due(id, now_ms())
    elseif t and t.s == 'due' then
      if t.x then
        count('waiting', -1)
        end_task(id, t, 'cancelled', '')
      else
        admit(id, t)
      end
    end
  end
  return #ids
end

-- How many of `ids` (tasks that must be done first) are not done; -1 if one can never be; and one that is not known.
local function undone(id, ids)
  local open = {}
  for _, other in ipairs(ids) do
    local state = redis.call('HGET', TASK .. other, 's')
    if not state then
      return 0, other
    elseif state == 'failed' or state == 'cancelled' then
      return -1
    elseif state ~= 'done' then
      open[#open + 1] = other
    end
  end
  for _, other in ipairs(open) do
    redis.call('SADD', AFTER .. other, id)
    redis.call('HSET', TASK .. other, 'd', '1', 'f', '1')
  end
  return #open
end

-- One task with options (o: a table, see tasks/records.py). Returns 1 (new), {id of the task that is there} or
-- {'UNKNOWN', id of a task that should be done first}.
local function enqueue_special(id, name, payload, queue, place, o)
  if o.y then
    local other = redis.call('HGET', UNIQUE, o.y)
    local state = other and redis.call('HGET', TASK .. other, 's')
    if state and not ENDED[state] then
      return {other}
    end
  end
  local t = {u = queue, q = place, k = o.k, v = o.v, j = o.j}
  local fields = {'n', name, 'p', payload, 'u', queue, 'q', place}
  local state
  local open, unknown = 0, nil
  if o.f then
    open, unknown = undone(id, o.f)
    if unknown then
      return {'UNKNOWN', unknown}
    end
  end
  local at_ms = math.max(o.d and now_ms() + o.d or 0, o.a or 0)
  if open < 0 then
    state, fields[#fields + 1], fields[#fields + 2] = 'due', 'x', '1'
    put_due(id, now_ms())
  elseif open > 0 then
    state = 'blocked'
    for field, value in pairs({b = open, dl = o.d or 0, at = o.a or 0}) do
      fields[#fields + 1], fields[#fields + 2] = field, value
    end
  elseif at_ms > now_ms() then
    state = 'due'
    put_due(id, at_ms)
  else
    state = place_task(id, t)
  end
  for _, field in ipairs({'k', 'v', 'y', 'r', 'j', 'm'}) do
    if o[field] then
      fields[#fields + 1], fields[#fields + 2] = field, o[field]
    end
  end
  if o.k or o.y then
    fields[#fields + 1], fields[#fields + 2] = 'f', '1'
  end
  redis.call('HSET', TASK .. id, 's', state, 'h', t.h and '1' or '', 'c', t.c and '1' or '', 'op', o.o or '', unpack(fields))
  if o.y then
    redis.call('HSET', UNIQUE, o.y, id)
  end
  return 1
end

-- One task. `options`: MessagePack map, or ''. `check`: the id may be there already. Returns what enqueue_special does.
-- The caller has asked for room and gives a sequence number; it counts `waiting` and `enqueued` for what is new.
local function enqueue_task(id, name, payload, queue, priority, options, check, sequence)
  if check and redis.call('EXISTS', TASK .. id) == 1 then
    return {id}
  end
  local place = (9 - priority) * PRIORITY_STEP + sequence
  if options ~= '' then
    return enqueue_special(id, name, payload, queue, place, cmsgpack.unpack(options))
  end
  redis.call('HSET', TASK .. id, 's', 'queued', 'n', name, 'p', payload, 'u', queue, 'q', place)
  make_ready(id, queue, place)
  return 1
end

-- What a tick calls: one task, with everything that belongs to it but flush_tasks().
local function enqueue_alone(id, name, payload, queue, priority, options)
  local found = enqueue_task(id, name, payload, queue, tonumber(priority), options, true,
    redis.call('HINCRBY', TASKS, 'seq', 1))
  if found == 1 then
    count('waiting', 1)
    count('enqueued', 1)
  end
  return found == 1
end

