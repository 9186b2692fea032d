-- Take a session over: of any number that try at once, one succeeds.
-- KEYS[1] the session. ARGV: the value as it was read, the claimer's value, its time to live in ms.
-- Gives 1, or 0: it is not what it was. A second run of the same claim gives what the first gave.
local held = redis.call("GET", KEYS[1])
if held ~= ARGV[1] and held ~= ARGV[2] then
  return 0
end
redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3])
return 1
