-- A job raised. It stays with its worker, which waits and starts it again under a new fence; past its maximum it
-- becomes a dead letter; a stopping one ends.
-- KEYS[1] meta   ARGV: worker, key, fence, error, dead letters kept
-- Returns {'B' (back off), crashes, the new fence} | {'D' (dead), crashes} | {'X'} it was stopping and is gone | {'F'
-- fenced} | {'N' gone}.
-- Again: 'B' with the same numbers while it backs off ("a" is the fence that its last crash ended); else 'N'.
local worker, key, fence = ARGV[1], ARGV[2], ARGV[3]
local job = load_job(key)
if not job then
  return {'N'}
elseif job.o ~= worker or job.s == 'q' then
  return {'F'}
elseif job.g ~= fence then
  if job.s == 'b' and redis.call('HGET', JOB .. key, 'a') == fence then
    return {'B', job.c, job.g}
  end
  return {'F'}
elseif job.s == 'x' then
  drop_job(key, job, 'gone')
  return {'X'}
end
job.c = job.c + 1
if job.c + job.l > job.m then
  bury_job(key, job, ARGV[4], ARGV[5])
  return {'D', job.c}
end
local token = int(next_fence())
redis.call('HSET', JOB .. key, 's', 'b', 'c', job.c, 'e', ARGV[4], 'g', token, 'a', fence)
return {'B', job.c, token}
