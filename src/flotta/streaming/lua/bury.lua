-- Moves one pending event to the dead-letter stream: copied there and acked in one step.
-- KEYS[1] stream   KEYS[2] dead-letter stream
-- ARGV: group, id, reason, deliveries, dead-letter maxlen, stream name
-- Returns 1 if moved, 0 if it was not pending any more or its entry is gone (then there is nothing to keep).
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 or not entry then return 0 end
local fields, source, has = {}, entry[2], {}
for i = 1, #source, 2 do
  if source[i] ~= 'g' then  -- the address of an event that was redriven before
    fields[#fields + 1] = source[i]
    fields[#fields + 1] = source[i + 1]
    has[source[i]] = true
  end
end
local extras = {'o', ARGV[2], 's', ARGV[6], 'd', ARGV[4], 'r', ARGV[3]}
if not has['n'] then extras[#extras + 1] = 'n'; extras[#extras + 1] = 'malformed' end
if not has['p'] then extras[#extras + 1] = 'p'; extras[#extras + 1] = '' end
for _, extra in ipairs(extras) do fields[#fields + 1] = extra end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', unpack(fields))
return 1
