-- Takes back what a dead worker held. ARGV: worker, blame (1: the task may be what killed it), limit, dead_max.
-- A task that was told to cancel is cancelled; one that has lost more workers than it may goes to the dead letters; the
-- others go back to their place in line. Returns how many it still holds, or -1 if its lease is valid.
-- A second run goes on where the first has stopped.
local worker, blame, limit, dead_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
if is_live(worker) then
  return -1
end
redis.call('HDEL', IDLE, worker)
for _, id in ipairs(redis.call('SPOP', HELD .. worker, limit)) do
  local t = load_task(id)
  if t and t.s == 'running' and t.o == worker then
    if blame > 0 then
      t.l = redis.call('HINCRBY', TASK .. id, 'l', blame)
    end
    if t.x then
      end_task(id, t, 'cancelled', '')
    elseif t.l > t.m then
      local reason = cmsgpack.pack({type = 'WorkerLost', reason = 'its worker died ' .. int(t.l) .. ' times', trace = '',
        attempts = t.a + t.l, name = t.n})
      bury_task(id, t, reason, dead_max)
      end_task(id, t, 'failed', reason)
    else
      count('lost', 1)
      give_back(id, t, 0)
    end
  end
end
flush_tasks()
return redis.call('SCARD', HELD .. worker)
