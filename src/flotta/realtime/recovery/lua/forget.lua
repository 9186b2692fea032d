-- End a session, unless it is another owner's.
-- KEYS[1] the session. ARGV: the beginning of every value of the owner, and of the owner from whom it has the session (or
-- again its own), for how long (ms) an empty value says that it has ended (Node takes it for none); 0: not at all.
local held = redis.call("GET", KEYS[1])
local by = held and string.sub(held, 1, #ARGV[1])
if held and by ~= ARGV[1] and by ~= ARGV[2] then
  return 0
end
if ARGV[3] == "0" then
  return redis.call("DEL", KEYS[1])
end
redis.call("SET", KEYS[1], "", "PX", ARGV[3])
return 1
