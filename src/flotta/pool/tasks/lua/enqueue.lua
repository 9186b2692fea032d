-- Accepts tasks, in the order given. ARGV: waiting_max, check ('1': an id may be there already, as after a lost reply),
-- then six for each: id, name, payload, queue, priority, options.
-- Returns the number of new ones, then for each other one its number (from 1) and: the id of the task that is there ·
-- 'FULL', how many wait · 'UNKNOWN', the id of a task that should be done first. Or 'SHUTDOWN' alone.
-- A second run is only right with check = '1'.
if redis.call('HEXISTS', META, 'shutdown') == 1 then
  return {'SHUTDOWN'}
end
local waiting_max, check = tonumber(ARGV[1]), ARGV[2] == '1'
local n = (#ARGV - 2) / 6
local waiting = tonumber(redis.call('HGET', TASKS, 'waiting') or 0)
local sequence = redis.call('HINCRBY', TASKS, 'seq', n) - n
local new, others = 0, {}
for i = 1, n do
  local at = 6 * i - 3
  local found
  if waiting + new >= waiting_max and not (check and redis.call('EXISTS', TASK .. ARGV[at]) == 1) then
    found = {'FULL', int(waiting + new)}
  else
    found = enqueue_task(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4]), ARGV[at + 5], check,
      sequence + i)
  end
  if found == 1 then
    new = new + 1
  else
    others[#others + 1] = i
    others[#others + 1] = found
  end
end
count('waiting', new)
count('enqueued', new)
flush_tasks()
return {new, unpack(others)}
