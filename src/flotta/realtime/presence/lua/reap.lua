-- Ends some of the sockets of an instance whose lease has ended (or that leaves for good: ARGV[3] is 1).
-- ARGV: instance, about how many, 1 or 0. Returns 1 if there may be more, else 0: then nothing is left of the instance.
local instance = ARGV[1]
if ARGV[3] ~= '1' and is_live(instance) then
  return 0
end
local page = redis.call('HSCAN', OF .. instance, 0, 'COUNT', ARGV[2])[2]
for i = 1, #page, 2 do
  drop(instance, page[i + 1], page[i])
end
if redis.call('EXISTS', OF .. instance) == 1 then
  return 1
end
redis.call('ZREM', LEASES, instance)
return 0
