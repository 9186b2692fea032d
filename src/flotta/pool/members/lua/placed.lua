-- Whether the table gives a worker any slot.  ARGV: worker.
-- Returns {epoch, 1 or 0, 1 or 0: whether its lease is valid, leases of workers that do not leave, about}.
local worker = ARGV[1]
return {
  tonumber(redis.call('HGET', META, 'epoch') or 0),
  redis.call('SISMEMBER', P .. 'placed', worker),
  is_live(worker) and 1 or 0,
  math.max(0, redis.call('ZCARD', LEASES) - redis.call('SCARD', P .. 'leaving')),
}
