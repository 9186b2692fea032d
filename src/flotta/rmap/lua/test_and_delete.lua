-- Delete key ARGV[4] if its value is ARGV[5]. Returns whether it was deleted, and the previous value (false: none).
local previous = redis.call("HGET", hash, ARGV[4])
local equal = previous == ARGV[5]
if equal then
  commit_delete(ARGV[4])
end
return finish(equal and 1 or 0, previous)
