-- Takes or renews the lease under which one node looks after the pool, and tells it what there is to do.
-- ARGV: node, life of the lease in ms, most expired members to name.
-- Returns {0} if another node coordinates; else {1, server's time in ms, epoch, count of membership changes, expired
-- workers, expired nodes, queued jobs, parked jobs, node that shuts the pool down or ''}.
local node, lease_ms, limit = ARGV[1], ARGV[2], ARGV[3]
local holder = redis.call('GET', P .. 'coordinator')
if holder and holder ~= node then
  return {0}
end
redis.call('SET', P .. 'coordinator', node, 'PX', lease_ms)
local now = now_ms()
local meta = redis.call('HMGET', META, 'epoch', 'members', 'shutdown')
return {
  1, now, tonumber(meta[1] or 0), tonumber(meta[2] or 0),
  redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit),
  redis.call('ZRANGEBYSCORE', P .. 'nodes', '-inf', now, 'LIMIT', 0, limit),
  redis.call('ZCARD', QUEUED), redis.call('SCARD', PARKED), meta[3] or '',
}
