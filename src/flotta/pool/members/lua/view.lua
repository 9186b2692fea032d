-- Everything that a new table is computed from, at one moment.
-- Returns {epoch, workers that may have slots, workers with a lease that leave, known workers without a lease, slots and
-- their workers in turn, slots and their jobs in turn}.
local now, able, draining, gone, seen, leaving = now_ms(), {}, {}, {}, {}, {}
for _, worker in ipairs(redis.call('SMEMBERS', P .. 'leaving')) do
  leaving[worker] = true
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. int(now), '+inf')) do
  seen[worker] = true
  local list = leaving[worker] and draining or able
  list[#list + 1] = worker
end
for _, worker in ipairs(redis.call('HKEYS', P .. 'workers')) do
  if not seen[worker] then
    gone[#gone + 1] = worker
  end
end
return {
  tonumber(redis.call('HGET', META, 'epoch') or 0), able, draining, gone,
  redis.call('HGETALL', SLOTS), redis.call('HGETALL', SLOTJOBS),
}
