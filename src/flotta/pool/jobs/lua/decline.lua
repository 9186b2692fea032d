-- A worker does not know the kind of a job: it goes to another one, or is parked.
-- KEYS[1] meta   ARGV: worker, key, fence, the worker that should have it ('' nobody does)
-- Returns 'O' | 'X' it was stopping and is gone | 'F' fenced | 'N' gone.   Again: 'F', and nothing changes.
local worker, key, to = ARGV[1], ARGV[2], ARGV[4]
local job, why = load_owned(worker, key, ARGV[3])
if not job then
  return why
elseif job.s == 'x' then
  drop_job(key, job, 'gone')
  return 'X'
end
requeue_job(key, job, to ~= worker and takes_work(to) and to or '')
return 'O'
