-- The status or state of a socket has changed.
-- ARGV: instance, connection, user, socket id, record. Returns 1, or 0 if the record is not there or not this instance's.
local user, sid = ARGV[3], ARGV[4]
local old = redis.call('HGET', USER .. user, sid)
if not old or parts(old) ~= ARGV[1] then
  return 0
end
local new = ARGV[1] .. '\n' .. ARGV[2] .. '\n' .. ARGV[5]
if old == new then
  return 1 -- a second run, or `put` was quicker
end
redis.call('HSET', USER .. user, sid, new)
tell('status', user, sid, ARGV[5], redis.call('HLEN', USER .. user))
return 1
