-- Ends some of the sockets of an instance whose lease has ended (or that leaves for good: ARGV[3] is 1).
-- ARGV: instance, about how many, 1 or 0, where to go on ('0' at first). Returns where to go on, or nothing: then nothing is
-- left of the instance, or it lives. A scan that began anew each time would look through what is empty already, for ever.
local instance = ARGV[1]
if ARGV[3] ~= '1' and is_live(instance) then
  return false
end
local scanned = redis.call('HSCAN', OF .. instance, ARGV[4], 'COUNT', ARGV[2])
local page = scanned[2]
for i = 1, #page, 2 do
  drop(instance, page[i + 1], page[i])
end
if scanned[1] ~= '0' or redis.call('EXISTS', OF .. instance) == 1 then
  return scanned[1]
end
redis.call('ZREM', LEASES, instance)
return false
