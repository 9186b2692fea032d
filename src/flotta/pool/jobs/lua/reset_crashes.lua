-- A job has run well for long enough: what it crashed and what its owners' deaths cost it is forgotten.
-- KEYS[1] meta   ARGV: worker, key, fence
-- Returns 'O' | 'F' fenced | 'N' gone.   Again: the same.
local job, why = load_owned(ARGV[1], ARGV[2], ARGV[3])
if not job then
  return why
end
redis.call('HDEL', JOB .. ARGV[2], 'c', 'l', 'e')
return 'O'
