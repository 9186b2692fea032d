-- Add ARGV[5] to the integer at key ARGV[4]. Returns the new value as text (a Lua number would lose digits past 2^53).
redis.call("HINCRBY", hash, ARGV[4], ARGV[5])
local value = redis.call("HGET", hash, ARGV[4])
commit_set(ARGV[4], value)
return finish(value)
