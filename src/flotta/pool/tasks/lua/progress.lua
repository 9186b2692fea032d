-- How far a task is. ARGV: worker, id, fence, progress. Returns 1, 2 (it should be cancelled) or 0 (refused: it runs under
-- another fence, or not at all). A second run changes nothing.
local key = TASK .. ARGV[2]
local v = redis.call('HMGET', key, 's', 'o', 'g', 'x')
if v[1] ~= 'running' or v[2] ~= ARGV[1] or v[3] ~= ARGV[3] then
  return 0
end
redis.call('HSET', key, 'pr', ARGV[4])
return v[4] and 2 or 1
