-- Takes jobs back from a worker whose lease is over: stopping ones are gone; the others are queued for the owners of
-- their slots or parked. What a job had begun with counts as a loss where the worker is to blame; past its maximum it
-- is dead.
-- KEYS[1] meta   ARGV: worker, 1 to blame it else 0, how many at most, dead letters kept
-- Returns {left, moved, parked, dropped, dead}, or {-1} if its lease is valid.   Again: takes the next ones.
local worker, blame = ARGV[1], tonumber(ARGV[2])
if is_live(worker) then
  return {-1}
end
local moved, parked, dropped, dead = 0, 0, 0, 0

local function take_back(key, job)
  if job.s == 'x' then
    drop_job(key, job, 'gone')
    dropped = dropped + 1
    return
  end
  if job.s ~= 'q' and blame > 0 then
    job.l = job.l + blame
    if job.c + job.l > job.m then
      bury_job(key, job, 'its workers died', ARGV[4])
      dead = dead + 1
      return
    end
    redis.call('HSET', JOB .. key, 'l', job.l)
  end
  local to = slot_owner(job.n)
  requeue_job(key, job, to)
  if to == '' then
    parked = parked + 1
  else
    moved = moved + 1
  end
end

local keys = redis.call('SRANDMEMBER', OWNED .. worker, ARGV[3])
table.sort(keys)  -- the same jobs get their tokens in the same order, whatever the server's chance says
for _, key in ipairs(keys) do
  local job = load_job(key)
  if job and job.o == worker then
    take_back(key, job)
  else
    redis.call('SREM', OWNED .. worker, key)
  end
end
return {redis.call('SCARD', OWNED .. worker), moved, parked, dropped, dead}
