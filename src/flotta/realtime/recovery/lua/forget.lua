-- Delete a session, unless it is another owner's.
-- KEYS[1] the session. ARGV: the beginning of every value of the owner.
if redis.call("GETRANGE", KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then
  return redis.call("DEL", KEYS[1])
end
return 0
