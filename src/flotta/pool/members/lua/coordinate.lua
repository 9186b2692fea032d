-- Takes or renews the lease under which one node looks after the pool, and tells it what there is to do.
-- ARGV: node, life of the lease in ms, most expired members to name, life of the pool that the node has joined.
-- Returns {0} if another node coordinates, or that life is over; else {1, count of membership changes, expired workers and in turn 1 if they
-- were leaving else 0, expired nodes, queued jobs, parked jobs, 1 if the pool shuts down else 0}.
local node, lease_ms, limit = ARGV[1], ARGV[2], ARGV[3]
local holder = redis.call('GET', P .. 'coordinator')
if holder and holder ~= node or redis.call('HGET', META, 'life') ~= ARGV[4] then
  return {0}
end
redis.call('SET', P .. 'coordinator', node, 'PX', lease_ms)
local now, expired = now_ms(), {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit)) do
  expired[#expired + 1] = worker
  expired[#expired + 1] = redis.call('SISMEMBER', P .. 'leaving', worker)
end
return {
  1, tonumber(redis.call('HGET', META, 'members') or 0), expired,
  redis.call('ZRANGEBYSCORE', P .. 'nodes', '-inf', now, 'LIMIT', 0, limit),
  redis.call('ZCARD', QUEUED), redis.call('SCARD', PARKED), redis.call('HEXISTS', META, 'shutdown'),
}
