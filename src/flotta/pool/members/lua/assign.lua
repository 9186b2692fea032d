-- Changes the slot table, all or nothing: only the coordinator may, only on the epoch that it computed from, and only in
-- favour of workers that live and do not leave. A coordinator that was paused is refused here.
-- The set "placed" is exactly the workers that the table names.
-- ARGV: node, epoch, number of workers that lose their last slot, those, then slot, worker, ...
-- Returns the new epoch, or 'STALE' (another coordinator or epoch), or 'GONE' (a worker may have no slots).
local node, epoch, emptied = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('GET', P .. 'coordinator') ~= node or (redis.call('HGET', META, 'epoch') or '0') ~= epoch then
  return 'STALE'
end
local first, gainers, bells = 4 + emptied, {}, {}
for i = first + 1, #ARGV, 2 do
  gainers[ARGV[i]] = true
end
for worker in pairs(gainers) do
  if not is_live(worker) or redis.call('SISMEMBER', P .. 'leaving', worker) == 1 then
    return 'GONE'
  end
  bells[worker] = true
end
for i = first, #ARGV, 2000 do  -- Lua passes some 8,000 arguments at most
  local last = math.min(i + 1999, #ARGV)
  local slots = {}
  for j = i, last, 2 do
    slots[#slots + 1] = ARGV[j]
  end
  for _, worker in ipairs(redis.call('HMGET', SLOTS, unpack(slots))) do
    if worker then
      bells[worker] = true
    end
  end
  redis.call('HSET', SLOTS, unpack(ARGV, i, last))
end
for worker in pairs(gainers) do
  redis.call('SADD', P .. 'placed', worker)
end
for i = 4, 3 + emptied do
  redis.call('SREM', P .. 'placed', ARGV[i])
end
local now_at = redis.call('HINCRBY', META, 'epoch', 1)
for worker in pairs(bells) do
  ring(worker, 't', 'table', 'e', now_at)
end
return now_at
