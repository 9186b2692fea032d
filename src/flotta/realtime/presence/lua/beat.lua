-- Renews an instance's lease. If nobody at all has beaten for a while, Redis was away and not they: then every lease
-- begins anew, so that nobody is taken for dead who could not say that he lives.
-- ARGV: instance, lease in ms, silence in ms after which that is so, epoch if there is none yet.
-- Returns {epoch, 1 if the lease was there else 0, records of this instance, instances whose lease has ended...}.
local now, lease_ms = now_ms(), tonumber(ARGV[2])
redis.call('HSETNX', META, 'epoch', ARGV[4])
redis.call('HSET', META, 'silence', ARGV[3])
if is_silent() then
  for _, instance in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    redis.call('ZADD', LEASES, 'GT', now + lease_ms, instance)
  end
end
redis.call('HSET', META, 'beat', now)
local had = redis.call('ZSCORE', LEASES, ARGV[1])
redis.call('ZADD', LEASES, now + lease_ms, ARGV[1])
local answer = {redis.call('HGET', META, 'epoch'), had and 1 or 0, redis.call('HLEN', OF .. ARGV[1])}
for _, instance in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, 16)) do
  answer[#answer + 1] = instance
end
return answer
