-- Makes a node present: its stream of replies, and its time of presence. Joining again is harmless.
-- A pool that is being shut down, or was and is not cleared away, is joined by nobody. The first node that comes to an
-- empty one begins its life: all later steps of its members name it.
-- ARGV: node, ttl in ms, life of a stream that nobody renews in ms.  Returns the life, or 'SHUTDOWN'.
local node, ttl_ms, stream_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if redis.call('HEXISTS', META, 'shutdown') == 1 then
  return 'SHUTDOWN'
end
redis.call('HSETNX', META, 'life', int(now_us()))
open_stream(REPLIES .. node, stream_ms)
redis.call('ZADD', P .. 'nodes', now_ms() + ttl_ms, node)
return redis.call('HGET', META, 'life')
