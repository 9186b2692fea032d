-- Makes a node present: its stream of replies, and its time of presence. Joining again is harmless.
-- ARGV: node, ttl in ms, life of a stream that nobody renews in ms.  Returns the server's time in ms.
local node, ttl_ms, stream_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
open_stream(REPLIES .. node, stream_ms)
redis.call('ZADD', P .. 'nodes', now_ms() + ttl_ms, node)
return now_ms()
