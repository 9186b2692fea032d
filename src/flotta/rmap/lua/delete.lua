-- Delete key ARGV[4]. Returns its previous value (false: there was none, and nothing was written).
local previous = redis.call("HGET", hash, ARGV[4])
if previous then
  commit_delete(ARGV[4])
end
return finish(previous)
