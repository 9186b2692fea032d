-- The whole pool stops: from now on nothing is accepted and no worker joins; every worker and every node is told.
-- KEYS[1] meta   ARGV: node, ms after which jobs are taken away from workers that have not ended them
-- Returns {node that began it, ms left}.   Again, also by another node: tells them once more; the first one's time
-- counts.
-- Calls: O(workers + nodes).
local known = redis.call('HMGET', META, 'shutdown', 'shutdown_until')
if not known[1] then
  known = {ARGV[1], now_ms() + tonumber(ARGV[2])}
  redis.call('HSET', META, 'shutdown', known[1], 'shutdown_until', int(known[2]))
end
for _, worker in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  ring(worker, 't', 'shutdown')
end
for _, node in ipairs(redis.call('ZRANGE', P .. 'nodes', 0, -1)) do
  reply(node, 't', 'shutdown')
end
return {known[1], math.max(0, tonumber(known[2]) - now_ms())}
