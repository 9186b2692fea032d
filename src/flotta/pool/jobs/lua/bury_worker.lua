-- The end of a worker whose lease is over and that has neither jobs nor tasks any more: notifications that it has not
-- used follow their jobs, then all that is known of it is deleted. Its id is never used again.
-- KEYS[1] meta   ARGV: worker, how many notifications at most
-- Returns 'D' (done) | 'M' more notifications: call again | 'J' it still has jobs or tasks | 'L' its lease is valid.
-- Again: 'D'.
local worker, limit = ARGV[1], ARGV[2]
if is_live(worker) then
  return 'L'
elseif redis.call('SCARD', OWNED .. worker) + redis.call('SCARD', P .. 'held:' .. worker) > 0 then
  return 'J'
end
if not forward_notes(worker, limit) then
  return 'M'
end
redis.call('UNLINK', OWNED .. worker, P .. 'held:' .. worker, INBOX .. worker)
redis.call('HDEL', P .. 'workers', worker)
redis.call('ZREM', LEASES, worker)
redis.call('SREM', P .. 'leaving', worker)
return 'D'
