-- Save a session, unless it is another owner's.
-- KEYS[1] the session. ARGV: the beginning of every value of the owner, the value, its time to live in ms.
-- Gives 1, or 0: somebody else has claimed it. A session that is gone is made anew.
local held = redis.call("GETRANGE", KEYS[1], 0, #ARGV[1] - 1)
if held ~= "" and held ~= ARGV[1] then
  return 0
end
redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3])
return 1
