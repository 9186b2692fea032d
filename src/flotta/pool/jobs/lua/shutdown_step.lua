-- One step of a shutdown: drops queued jobs; once the time is over, those of the workers, too. Their dispatchers hear
-- `gone`, who waits for a stop `stopped`. Any node may do it, so a shutdown outlives the one that began it.
-- KEYS[1] meta   ARGV: how many at most
-- Returns {jobs dropped, queued left, jobs of workers left, workers left, ms left}, or {-1} if nobody shuts it down.
-- Again: the next ones.   Calls: O(workers) beside the steps.
local ends = redis.call('HGET', META, 'shutdown_until')
if not ends then
  return {-1}
end
local limit, dropped, owned = tonumber(ARGV[1]), 0, 0
local ms_left = math.max(0, tonumber(ends) - now_ms())

local function drop(key)
  local job = load_job(key)
  if job then
    drop_job(key, job, 'gone')
    dropped = dropped + 1
  end
end

for _, key in ipairs(redis.call('ZRANGE', QUEUED, 0, limit - 1)) do
  drop(key)
end
local workers = redis.call('ZRANGE', LEASES, 0, -1)
for _, worker in ipairs(workers) do
  if ms_left == 0 and dropped < limit then
    for _, key in ipairs(redis.call('SRANDMEMBER', OWNED .. worker, limit - dropped)) do
      drop(key)
    end
  end
  owned = owned + redis.call('SCARD', OWNED .. worker)
end
return {dropped, redis.call('ZCARD', QUEUED), owned, #workers, ms_left}
