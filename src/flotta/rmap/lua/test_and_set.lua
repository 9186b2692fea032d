-- Set key ARGV[4] to ARGV[6] if its value is ARGV[5]. Returns whether it was set, and the previous value (false: none).
local previous = redis.call("HGET", hash, ARGV[4])
local equal = previous == ARGV[5]
if equal then
  commit_set(ARGV[4], ARGV[6])
end
return finish(equal and 1 or 0, previous)
