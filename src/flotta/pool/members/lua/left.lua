-- A worker goes. If it has nothing any more every trace of it is removed, and notifications that it was about to send
-- on follow their jobs; else its lease ends now, so that what it has left is reaped at once (and not blamed, because it
-- is among the leaving).
-- ARGV: worker.  Returns how many jobs and tasks it has left behind.
local worker = ARGV[1]
if redis.call('EXISTS', META) == 0 then  -- nothing is left of the pool, and nothing of it is made anew
  return 0
end
local left = redis.call('SCARD', OWNED .. worker) + redis.call('SCARD', P .. 'held:' .. worker)
if left == 0 and forward_notes(worker, 1000) then
  redis.call('UNLINK', OWNED .. worker, INBOX .. worker)
  redis.call('HDEL', P .. 'workers', worker)
  redis.call('ZREM', LEASES, worker)
  redis.call('SREM', P .. 'leaving', worker)
  redis.call('HDEL', P .. 'idle', worker)
elseif is_live(worker) then
  redis.call('SADD', P .. 'leaving', worker)
  redis.call('ZADD', LEASES, now_ms(), worker)
end
members_changed()
return left
