-- Deletes keys of a pool that was shut down, for the one who has the lock to do so. While it is held nobody joins, so
-- nothing of a new life of the pool is deleted; who was too slow has lost it and deletes nothing more.
-- KEYS[1] meta   ARGV: who has the lock, ms for which it lasts from now on, 1 at the end else 0, keys
-- Returns 1, or 0: the lock is not theirs, or the pool is not shut down.   Again: the same; at the end 0.
local lock = P .. 'clearing'
if redis.call('GET', lock) ~= ARGV[1] then
  return 0
elseif redis.call('HEXISTS', META, 'shutdown') == 0 then  -- it was done before, and the pool may live again
  redis.call('DEL', lock)
  return 0
end
redis.call('PEXPIRE', lock, ARGV[2])
for i = 4, #ARGV do
  if ARGV[i] ~= META and ARGV[i] ~= lock then
    redis.call('UNLINK', ARGV[i])
  end
end
if ARGV[3] == '1' then
  redis.call('UNLINK', META, lock)
end
return 1
