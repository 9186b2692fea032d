-- Makes a node present: its stream of replies, and its time of presence. Joining again is harmless.
-- A pool that was shut down is open again for the first node that comes when no other node and no worker is there.
-- ARGV: node, ttl in ms, life of a stream that nobody renews in ms.  Returns the server's time in ms.
local node, ttl_ms, stream_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local after_now = '(' .. int(now_ms())
if redis.call('HEXISTS', META, 'shutdown') == 1 and redis.call('ZCOUNT', LEASES, after_now, '+inf') == 0
  and redis.call('ZCOUNT', P .. 'nodes', after_now, '+inf') == 0 then
  redis.call('HDEL', META, 'shutdown', 'shutdown_until')
end
open_stream(REPLIES .. node, stream_ms)
redis.call('ZADD', P .. 'nodes', now_ms() + ttl_ms, node)
return now_ms()
