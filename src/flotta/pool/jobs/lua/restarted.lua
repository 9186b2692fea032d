-- A job that backed off runs again: backoff -> running; its dispatcher hears `started` if it has not yet.
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
  mark_started(ARGV[1], ARGV[2], job)
end
return 'O'
