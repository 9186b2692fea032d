-- A worker does not know the kind of a job: it goes to another one, or is parked. Where nobody knows it, it stays parked
-- until the members change: offered to those who are there it would come back at once, for ever.
-- KEYS[1] meta   ARGV: worker, key, fence, the worker that should have it ('' nobody does), the count of changes
-- among the members (meta.members) before it was looked for ('' not known)
-- Returns 'O' | 'X' it was stopping and is gone | 'F' fenced | 'N' gone.   Again: 'F', and nothing changes.
local worker, key, to = ARGV[1], ARGV[2], ARGV[4]
local job, why = load_owned(worker, key, ARGV[3])
if not job then
  return why
elseif job.s == 'x' then
  drop_job(key, job, 'gone')
  return 'X'
end
if to == '' and ARGV[5] ~= '' then
  redis.call('HSET', JOB .. key, 'u', ARGV[5])
end
requeue_job(key, job, to ~= worker and takes_work(to) and to or '')
return 'O'
