-- Everything that a new table is computed from, at one moment.
-- Returns {epoch, count of membership changes, workers that may have slots, workers without a lease, slots and their
-- workers in turn, slots and their jobs in turn}. "Without a lease": they have facts, slots or a lease that has ended.
local now, able, gone, seen = now_ms(), {}, {}, {}
local leaving = {}
for _, worker in ipairs(redis.call('SMEMBERS', P .. 'leaving')) do
  leaving[worker] = true
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. int(now), '+inf')) do
  seen[worker] = true
  if not leaving[worker] then
    able[#able + 1] = worker
  end
end
for _, worker in ipairs(redis.call('HKEYS', P .. 'workers')) do
  if not seen[worker] then
    gone[#gone + 1] = worker
  end
end
local meta = redis.call('HMGET', META, 'epoch', 'members')
return {
  tonumber(meta[1] or 0), tonumber(meta[2] or 0), able, gone,
  redis.call('HGETALL', SLOTS), redis.call('HGETALL', SLOTJOBS),
}
