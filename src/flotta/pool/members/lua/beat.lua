-- Renews a node's presence and the leases of its workers, and ends the leases that it lets go.
-- If the life of the pool that the node has joined is over, the data was lost, or the pool was shut down without the node.
-- In the first case it goes on with what is there; in the second, which only the node can tell, nothing is written. Nor
-- is it while the pool is cleared away.
-- ARGV: node, ttl in ms, life of a stream that nobody renews in ms, life that the node has joined, 1 if its end is a
-- shutdown else 0, number of workers to renew, those, those to let go.
-- Returns {server's time in ms, epoch of the table, node that shuts the pool down or '', 1 if the node was present, life
-- of the pool or '' (shut down), then 1 or 0 for each worker to renew}. 0: the lease had ended, and an ended lease is
-- never revived, reaped or not.
local node, ttl_ms, stream_ms, life, count = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[6])
local now = now_ms()
local meta = redis.call('HMGET', META, 'epoch', 'shutdown', 'life')
local is_over = meta[3] ~= life and ARGV[5] == '1'
if is_over or meta[2] and redis.call('EXISTS', P .. 'clearing') == 1 then
  local answer = {now, tonumber(meta[1] or 0), not is_over and meta[2] or '', 0, is_over and '' or life}
  for _ = 1, count do
    answer[#answer + 1] = 0
  end
  return answer
end
if not meta[3] then
  redis.call('HSET', META, 'life', life)
end
local present = redis.call('ZSCORE', P .. 'nodes', node)
redis.call('ZADD', P .. 'nodes', now + ttl_ms, node)
open_stream(REPLIES .. node, stream_ms)
local answer = {
  now, tonumber(meta[1] or 0), meta[2] or '', present and tonumber(present) > now and 1 or 0, meta[3] or life,
}
for i = 7, 6 + count do
  local worker = ARGV[i]
  if is_live(worker) then
    redis.call('ZADD', LEASES, now + ttl_ms, worker)
    open_stream(INBOX .. worker, stream_ms)
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
for i = 7 + count, #ARGV do
  if is_live(ARGV[i]) then
    redis.call('ZADD', LEASES, now, ARGV[i])
  end
end
return answer
