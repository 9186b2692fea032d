-- Set key ARGV[4] to ARGV[5] unless it exists. Returns 1 if it was set.
local absent = redis.call("HEXISTS", hash, ARGV[4]) == 0
if absent then
  commit_set(ARGV[4], ARGV[5])
end
return finish(absent and 1 or 0)
