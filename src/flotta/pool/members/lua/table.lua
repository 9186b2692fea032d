-- The slot table, or the part of it that is one worker's.
-- ARGV: worker, or '' for all.  Returns {epoch, slots and their workers in turn}, or {epoch, slots of that worker}.
local epoch = tonumber(redis.call('HGET', META, 'epoch') or 0)
local slots = redis.call('HGETALL', SLOTS)
if ARGV[1] == '' then
  return {epoch, slots}
end
local mine = {}
for i = 1, #slots, 2 do
  if slots[i + 1] == ARGV[1] then
    mine[#mine + 1] = slots[i]
  end
end
return {epoch, mine}
