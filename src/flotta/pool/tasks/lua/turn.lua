-- One round trip of a worker: what it has finished, then what it runs next.
-- ARGV: worker, want (how many it can take), dead_max, number of queues, the queues (first come first), number of names,
-- the names of tasks that it has found that it does not know, then five for each finished task: id, fence, verdict,
-- value, delay ms.
-- Verdicts: d done (value: result) · f failed for good (value: how) · r failed, again after the delay · b given back,
-- no attempt used, again after the delay · u given back as unknown · c cancelled.
-- Returns {1 | 0 lease lost, ms until the next one is due or -1, 1 if more is ready, fences that were refused ({...}),
-- tasks ({id, fence, name, payload, failures, losses, options, ...})}.
-- A second run refuses what the first has finished; what the first handed out is found by task_held.
local worker, want, dead_max, queues_n = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local refused, ended, gone, done = {}, {}, {}, 0
local SHARE_MS = 2
local HAND_BACK = {r = true, b = true, u = true}
local names_n = tonumber(ARGV[5 + queues_n])

local function finish(id, verdict, value, delay_ms)
  local t = load_task(id)
  if verdict == 'd' then
    end_task(id, t, 'done', value)
  elseif verdict == 'c' or t.x and HAND_BACK[verdict] then
    end_task(id, t, 'cancelled', '')
  elseif verdict == 'b' then
    give_back(id, t, delay_ms)
  elseif verdict == 'u' then
    t.un = '1'
    redis.call('HSET', TASK .. id, 'un', '1', 'f', '1')
    give_back(id, t, 0)
  else
    t.a = redis.call('HINCRBY', TASK .. id, 'a', 1)
    if verdict == 'r' then
      redis.call('HSET', TASK .. id, 'e', value)
      count('retried', 1)
      retry(id, t, delay_ms)
    else
      bury_task(id, t, value, dead_max)
      end_task(id, t, 'failed', value)
    end
  end
end

redis.call('HDEL', IDLE, worker)
for at = 6 + queues_n + names_n, #ARGV, 5 do
  local id, fence = ARGV[at], ARGV[at + 1]
  local v = redis.call('HMGET', TASK .. id, 's', 'o', 'g', 'f', 'r')
  if v[1] ~= 'running' or v[2] ~= worker or v[3] ~= fence then
    refused[#refused + 1] = fence
  else
    ended[#ended + 1] = id
    if ARGV[at + 2] == 'd' and not v[4] then -- end_task, where nothing else depends on this task
      if v[5] == '0' then
        gone[#gone + 1] = TASK .. id
      else
        redis.call('HSET', TASK .. id, 's', 'done', 'z', ARGV[at + 3], 'p', '')
        redis.call('PEXPIRE', TASK .. id, v[5] or RESULT_TTL_MS)
      end
      done = done + 1
    else
      finish(id, ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4]))
    end
  end
end
count('done', done)
for first = 1, #gone, 1000 do
  redis.call('UNLINK', unpack(gone, first, math.min(first + 999, #gone)))
end
for first = 1, #ended, 1000 do
  redis.call('SREM', HELD .. worker, unpack(ended, first, math.min(first + 999, #ended)))
end

local pumped = pump(50)
flush_ready()

local live, more, tasks, held = is_live(worker), 0, {}, {}
local queues, serves = {}, {}
for i = 1, queues_n do
  queues[i] = ARGV[4 + i]
  serves[queues[i]] = true
end

-- The queues, then the strays of these queues that this worker may know.
local function lines()
  local strays = redis.call('SMEMBERS', STRAYS)
  if #strays == 0 then
    return queues
  end
  local unknown, found = {}, {unpack(queues)}
  for i = 6 + queues_n, 5 + queues_n + names_n do
    unknown[ARGV[i]] = true
  end
  for _, stray in ipairs(strays) do
    local queue, name = string.match(stray, '^%?(.-)%?(.*)$')
    if redis.call('EXISTS', READY .. stray) == 0 then
      redis.call('SREM', STRAYS, stray)
    elseif serves[queue] and not unknown[name] then
      found[#found + 1] = stray
    end
  end
  return found
end

-- Fills `tasks` with up to `n` of a queue. An id whose record is gone (evicted, deleted by hand) is passed over.
local function hand_out(queue, n)
  local ids = redis.call('ZPOPMIN', READY .. queue, n)
  local fence = next_fence(#ids / 2)
  for i = 1, #ids, 2 do
    local id = ids[i]
    local v = redis.call('HMGET', TASK .. id, 's', 'n', 'p', 'a', 'l', 'op')
    if v[1] == 'queued' then
      local text = int(fence)
      fence = fence + 1
      redis.call('HSET', TASK .. id, 's', 'running', 'o', worker, 'g', text)
      held[#held + 1] = id
      local k = #tasks
      tasks[k + 1], tasks[k + 2], tasks[k + 3], tasks[k + 4] = id, text, v[2], v[3]
      tasks[k + 5], tasks[k + 6], tasks[k + 7] = v[4] or '0', v[5] or '0', v[6] or ''
    end
  end
  count('waiting', -#ids / 2)
end

local next_ms = -1
if want > 0 and takes_work(worker) then
  local sharers = redis.call('HLEN', IDLE) + 1
  for _, queue in ipairs(lines()) do
    local ready = redis.call('ZCARD', READY .. queue)
    local n = math.min(want - #held, math.ceil(ready / sharers))
    if n > 0 then
      hand_out(queue, n)
    end
    if ready > n then
      more = 1
      ready_queues[queue] = true
      if sharers > 1 then -- others are on their way: leave them their share, then look again
        next_ms = SHARE_MS
      end
    end
  end
  if #held > 0 then
    redis.call('SADD', HELD .. worker, unpack(held))
  end
  if next_ms == SHARE_MS then
    more = 0
  elseif #held < want and more == 0 then
    if pumped < 50 then
      redis.call('HSET', IDLE, worker, ' ' .. table.concat(queues, ' ') .. ' ')
      local first = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
      if first[2] then
        next_ms = math.max(tonumber(first[2]) - now_ms(), 0)
      end
    else
      more = 1
    end
  end
end
flush_counts()
wake_idle()
return {live and 1 or 0, next_ms, more, refused, tasks}
