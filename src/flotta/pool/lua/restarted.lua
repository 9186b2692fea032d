-- A job that backed off runs again: backoff -> running.
-- KEYS[1] meta   ARGV: worker, key, fence
-- Returns 'O' | 'X' it is stopping: end it | 'F' fenced | 'N' gone.   Again: 'O', and nothing changes.
local job, why = load_owned(ARGV[1], ARGV[2], ARGV[3])
if not job then
  return why
elseif job.s == 'x' then
  return 'X'
elseif job.s == 'q' then
  return 'F'
elseif job.s == 'b' then
  redis.call('HSET', JOB .. ARGV[2], 's', 'r')
end
return 'O'
