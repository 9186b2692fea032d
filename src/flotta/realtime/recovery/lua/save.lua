-- Save a session, unless it is another owner's, or has ended.
-- KEYS[1] the session. ARGV: the beginning of every value of the owner, and of the owner from whom it has the session (or
-- again its own), the value, its time to live in ms.
-- Gives 1, or 0: somebody else has claimed it, or it is empty (forget.lua). One that is gone is made anew.
local held = redis.call("GET", KEYS[1])
local by = held and string.sub(held, 1, #ARGV[1])
if held and by ~= ARGV[1] and by ~= ARGV[2] then
  return 0
end
redis.call("SET", KEYS[1], ARGV[3], "PX", ARGV[4])
return 1
