-- Empty the map if every key has its expected value: ARGV[4], ARGV[5] are the first pair. Returns 1 if it was emptied.
local equal = true
for i = 4, #ARGV, 2 do
  equal = equal and redis.call("HGET", hash, ARGV[i]) == ARGV[i + 1]
end
if equal then
  commit_reset("reset")
end
return finish(equal and 1 or 0)
