-- Renews a node's presence and the leases of its workers, and ends the leases that it lets go.
-- ARGV: node, ttl in ms, life of a stream that nobody renews in ms, number of workers to renew, those, those to let go.
-- Returns {server's time in ms, epoch of the table, node that shuts the pool down or '', 1 if the node was present, then
-- 1 or 0 for each worker to renew}. 0: the lease had ended, and an ended lease is never revived, reaped or not.
local node, ttl_ms, stream_ms, count = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now = now_ms()
local present = redis.call('ZSCORE', P .. 'nodes', node)
redis.call('ZADD', P .. 'nodes', now + ttl_ms, node)
open_stream(REPLIES .. node, stream_ms)
local meta = redis.call('HMGET', META, 'epoch', 'shutdown')
local answer = {now, tonumber(meta[1] or 0), meta[2] or '', present and tonumber(present) > now and 1 or 0}
for i = 5, 4 + count do
  local worker = ARGV[i]
  if is_live(worker) then
    redis.call('ZADD', LEASES, now + ttl_ms, worker)
    open_stream(INBOX .. worker, stream_ms)
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
for i = 5 + count, #ARGV do
  if is_live(ARGV[i]) then
    redis.call('ZADD', LEASES, now, ARGV[i])
  end
end
return answer
