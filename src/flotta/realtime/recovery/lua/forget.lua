-- End a session, unless it is another owner's.
-- KEYS[1] the session. ARGV: the beginning of every value of the owner, for how long (ms) an empty value says that it has
-- ended (Node takes it for none); 0: not at all.
local held = redis.call("GET", KEYS[1])
if held and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == "0" then
  return redis.call("DEL", KEYS[1])
end
redis.call("SET", KEYS[1], "", "PX", ARGV[2])
return 1
