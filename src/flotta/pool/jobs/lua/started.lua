-- A job runs from now on, because it has said that it is ready (starting -> running) or has backed off (backoff ->
-- running); its dispatcher hears `started` if it has not yet.
-- KEYS[1] meta   ARGV: worker, key, fence, the state that it leaves
-- Returns 'O' | 'X' it is stopping: end it | 'F' fenced | 'N' gone.   Again: 'O', and nothing changes.
local job, why = load_owned(ARGV[1], ARGV[2], ARGV[3])
if not job then
  return why
elseif job.s == 'x' then
  return 'X'
elseif job.s == 'q' then
  return 'F'
elseif job.s == ARGV[4] then
  mark_started(ARGV[1], ARGV[2], job)
end
return 'O'
