-- Set key ARGV[4] to ARGV[5]. Returns whether it existed, its previous value, the revision of this write.
local previous = redis.call("HGET", hash, ARGV[4])
local revision = commit_set(ARGV[4], ARGV[5])
keep_alive()
return {previous and 1 or 0, previous or "", revision}
