-- Jobs that nobody has claimed for the ack grace go to another live worker than the silent one: the owner of the slot,
-- else one of those given. Where there is no other, the owner is rung again. Parked ones find an owner here, too.
-- KEYS[1] meta   ARGV: grace in ms, how many at most, live workers that the caller knows ...
-- Returns {moved, rung again, still parked}; all three together below "how many" means that no more are late.
-- Again: harmless; what was swept is not late any more.
local late = redis.call('ZRANGEBYSCORE', QUEUED, '-inf', int(now_ms() - tonumber(ARGV[1])), 'LIMIT', 0, ARGV[2])
local moved, rung, parked = 0, 0, 0

local function another(job)
  local owner = redis.call('HGET', SLOTS, job.n)
  if owner ~= job.o and takes_work(owner) then
    return owner
  end
  local others = #ARGV - 2
  for i = 0, others - 1 do
    local worker = ARGV[3 + (tonumber(job.n) + i) % others]
    if worker ~= job.o and takes_work(worker) then
      return worker
    end
  end
end

for _, key in ipairs(late) do
  local job = load_job(key)
  if not job or job.s ~= 'q' then
    redis.call('ZREM', QUEUED, key)
  else
    local to = not (job.o == '' and is_unwanted(key)) and another(job)
    if to then
      requeue_job(key, job, to)
      moved = moved + 1
    else
      redis.call('ZADD', QUEUED, now_ms(), key)
      if job.o == '' then
        parked = parked + 1
      else
        ring(job.o, 't', 'start', 'k', key, 'g', job.g, 'n', job.k)
        rung = rung + 1
      end
    end
  end
end
return {moved, rung, parked}
