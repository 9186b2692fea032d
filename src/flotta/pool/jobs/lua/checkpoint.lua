-- Keeps what a job goes on with after a crash or elsewhere. A stopping job may still do so.
-- KEYS[1] meta   ARGV: worker, key, fence, data
-- Returns 'O' | 'F' fenced | 'N' gone.   Again: the same.   Calls: 2 (HMGET, HSET).
local v = redis.call('HMGET', JOB .. ARGV[2], 'o', 'g')
if not v[1] then
  return 'N'
elseif v[1] ~= ARGV[1] or v[2] ~= ARGV[3] then
  return 'F'
end
redis.call('HSET', JOB .. ARGV[2], 'z', ARGV[4])
return 'O'
