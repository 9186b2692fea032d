-- A job ended before it was ready: its record is deleted, its dispatcher hears `failed`, who asked for its stop
-- `stopped`.
-- KEYS[1] meta   ARGV: worker, key, fence, error
-- Returns 'O' | 'S' it was started before, elsewhere or earlier: nothing is changed, say `crashed` | 'F' fenced | 'N'
-- gone.
-- Again: 'N', and nothing changes.
local key = ARGV[2]
local job, why = load_owned(ARGV[1], key, ARGV[3])
if not job then
  return why
elseif job.s == 'x' then
  drop_job(key, job, 'gone')
  return 'O'
elseif job.b then
  return 'S'
elseif job.s == 'q' then
  return 'F'
end
drop_job(key, job, 'failed', ARGV[4])
return 'O'
