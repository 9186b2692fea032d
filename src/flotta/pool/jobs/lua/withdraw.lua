-- A dispatch has timed out: takes the job back if it was not claimed; one that is starting is stopped.
-- KEYS[1] meta   ARGV: key, dispatch id
-- Returns {'W'} withdrawn | {'S', fence, worker} it had started | {'X'} it was starting: it is told to stop now |
-- {'G'} that dispatch's job is not there any more.   Again: 'G' after 'W', else the same.
local key = ARGV[1]
local job = load_job(key)
if not job or job.d ~= ARGV[2] then
  return {'G'}
elseif job.s == 'x' then
  return {'X'}
elseif job.b then
  return {'S', job.g, job.o}
elseif job.s == 'q' then
  drop_job(key, job)
  return {'W'}
end
redis.call('HSET', JOB .. key, 's', 'x')
ring(job.o, 't', 'stop', 'k', key, 'g', job.g)
return {'X'}
