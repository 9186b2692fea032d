-- Makes tasks of dead letters again, with all their attempts. ARGV: entry ids. Entries of jobs are left alone.
-- Returns, for each entry, the task's id, '' (no such entry, or a job) or nil (the pool shuts down: the entry stays).
-- One whose id or unique value has a task that has not ended keeps that one: the entry goes. A second run finds nothing
-- left to do.
local shutdown = redis.call('HEXISTS', META, 'shutdown') == 1
local made = {}
local OPTIONS = {'k', 'y', 'r', 'j'}
for i, entry in ipairs(ARGV) do
  local found = redis.call('XRANGE', DEAD, entry, entry)[1]
  made[i] = ''
  if found then
    local f = {}
    for at = 1, #found[2], 2 do
      f[found[2][at]] = found[2][at + 1]
    end
    if f.kind == 'task' and shutdown then
      made[i] = false
    elseif f.kind == 'task' then
      made[i] = f.key
      redis.call('XDEL', DEAD, entry)
      local state = redis.call('HGET', TASK .. f.key, 's')
      if not state or ENDED[state] then
        redis.call('UNLINK', TASK .. f.key)
        local o = {v = tonumber(f.v), m = tonumber(f.m), o = f.op}
        for _, field in ipairs(OPTIONS) do
          o[field] = f[field]
        end
        if enqueue_alone(f.key, f.name, f.payload, f.u, 9 - math.floor(f.q / PRIORITY_STEP), cmsgpack.pack(o)) then
          count('redriven', 1)
        end
      end
    end
  end
end
flush_tasks()
return made
