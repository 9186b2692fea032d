-- Parked jobs go to the owners of their slots, as far as these are alive, except those of a kind that nobody knows.
-- KEYS[1] meta   ARGV: how many at most (a random choice, so that none that cannot move stands in the way of others)
-- Returns {adopted, still parked}.   Again: the next ones.
local adopted = 0
local keys = redis.call('SRANDMEMBER', PARKED, ARGV[1])
table.sort(keys)  -- the same jobs get their tokens in the same order, whatever the server's chance says
for _, key in ipairs(keys) do
  local job = load_job(key)
  local to = job and not is_unwanted(key) and slot_owner(job.n) or ''
  if not job then
    redis.call('SREM', PARKED, key)
  elseif to ~= '' then
    requeue_job(key, job, to)
    adopted = adopted + 1
  end
end
return {adopted, redis.call('SCARD', PARKED)}
