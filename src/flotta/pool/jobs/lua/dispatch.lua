-- Accepts jobs: makes their records, queued for the owners of their slots, and rings these.
-- KEYS[1] meta   ARGV: node, queued jobs allowed per worker, then for each job: key, kind, payload, slot, dispatch id,
-- crashes allowed, scheduler ('' none)
-- Returns for each job three values: 'O' fence owner ('' parked: accepted, its slot has no live worker at this moment)
-- | 'E' (exists) | 'F' queued limit (full) | 'N' (no worker) | 'S' (shutting down); what is not said is ''.
-- Again: the same dispatch id answers like the first time as long as the record is there.
-- Calls: 2 a job (HSET, HINCRBY); 9 a batch (EXISTS, HGET twice, HMGET, ZCARD twice, TIME, HSET, ZADD); 4 for each
-- owner (ZSCORE, SISMEMBER, SADD, XADD). HMGET for each job only if one of the batch exists; 2 more for each planned job.
local node, count = ARGV[1], (#ARGV - 2) / 7
local records, slots = {}, {}
for i = 1, count do
  records[i] = JOB .. ARGV[7 * i - 4]
  slots[i] = ARGV[7 * i - 1]
end
local some_exist = redis.call('EXISTS', unpack(records)) > 0
local shutdown = redis.call('HGET', META, 'shutdown')
local owners = redis.call('HMGET', SLOTS, unpack(slots))
local waiting, workers = redis.call('ZCARD', QUEUED), redis.call('ZCARD', LEASES)
local limit = workers * tonumber(ARGV[2])
local answers, queue, rung, owned, made, fence = {}, {}, {}, {}, {}, nil
local now = int(now_ms())

local takers = {}
local function available(worker)
  if worker and takers[worker] == nil then
    takers[worker] = takes_work(worker)
  end
  return worker and takers[worker]
end

local function refusal(i, key, did)
  if some_exist then
    local known = redis.call('HMGET', records[i], 'd', 'g', 'o')
    if known[1] == did and not made[key] then
      return 'O', known[2], known[3]
    elseif known[1] then
      return 'E', '', ''
    end
  end
  if made[key] then
    return 'E', '', ''
  elseif shutdown then
    return 'S', '', ''
  elseif not available(owners[i]) and not any_takes_work() then
    return 'N', '', ''
  elseif waiting >= limit then
    return 'F', waiting, limit
  end
end

local function accept(i, at, key, owner)
  fence = fence and fence + 1 or next_fence(count)
  local token, kind, slot, scheduler = int(fence), ARGV[at + 1], slots[i], ARGV[at + 6]
  redis.call('HSET', records[i], 's', 'q', 'o', owner, 'g', token, 'k', kind, 'p', ARGV[at + 2], 'n', slot,
    'd', ARGV[at + 4], 'f', node, 'm', ARGV[at + 5], 't', now)
  redis.call('HINCRBY', SLOTJOBS, slot, 1)
  if scheduler ~= '' then
    redis.call('HSET', records[i], 'y', scheduler)
    redis.call('SADD', PLAN .. scheduler, key)
  end
  made[key], waiting = true, waiting + 1
  queue[#queue + 1] = now
  queue[#queue + 1] = key
  local keys, bell = owned[owner], rung[owner]
  if not keys then
    keys, bell = {}, {}
    owned[owner], rung[owner] = keys, bell
  end
  keys[#keys + 1] = key
  local last = #bell
  bell[last + 1], bell[last + 2], bell[last + 3], bell[last + 4], bell[last + 5], bell[last + 6] =
    'k', key, 'g', token, 'n', kind
  return 'O', token, owner
end

for i = 1, count do
  local at = 7 * i - 4
  local key = ARGV[at]
  local code, first, second = refusal(i, key, ARGV[at + 4])
  if not code then
    code, first, second = accept(i, at, key, available(owners[i]) and owners[i] or '')
  end
  answers[3 * i - 2], answers[3 * i - 1], answers[3 * i] = code, first, second
end
if #queue > 0 then
  redis.call('ZADD', QUEUED, unpack(queue))
end
for owner, keys in pairs(owned) do
  redis.call('SADD', owner == '' and PARKED or OWNED .. owner, unpack(keys))
  if owner ~= '' then
    ring(owner, 't', 'start', unpack(rung[owner]))
  end
end
return answers
