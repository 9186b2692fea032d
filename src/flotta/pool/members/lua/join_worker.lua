-- Gives a worker its lease and its inbox. A worker id is used once: joining under one that is known is refused, except
-- by the same worker whose first answer was lost.
-- ARGV: node, worker, facts (msgpack), ttl in ms, life of a stream that nobody renews in ms, life of the pool that the node
-- has joined.
-- Returns 'OK', 'EXISTS', 'SHUTDOWN', or 'LIFE': that life is over; the node's next beat tells whether it goes on.
local node, worker, facts, ttl_ms, stream_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
if redis.call('HEXISTS', META, 'shutdown') == 1 then
  return 'SHUTDOWN'
elseif redis.call('HGET', META, 'life') ~= ARGV[6] then
  return 'LIFE'
end
local known = redis.call('HGET', P .. 'workers', worker)
if known or redis.call('ZSCORE', LEASES, worker) then
  return known == facts and is_live(worker) and 'OK' or 'EXISTS'
end
open_stream(INBOX .. worker, stream_ms)
redis.call('HSET', P .. 'workers', worker, facts)
redis.call('ZADD', LEASES, now_ms() + ttl_ms, worker)
members_changed()
return 'OK'
