-- Cancels a task. ARGV: id. Waiting in any way: it has ended, at once. Running: its worker is told, and it is not run
-- again whatever happens to that worker. Returns its state then, 'cancelling' for a running one, '' for an unknown one.
-- A second run answers the same.
local id = ARGV[1]
local t = load_task(id)
if not t then
  return ''
end
if ENDED[t.s] then
  return t.s
end
if t.s == 'running' then
  redis.call('HSET', TASK .. id, 'x', '1', 'f', '1')
  ring(t.o, 't', 'cancel', 'k', id, 'g', t.g)
  return 'cancelling'
end
if t.s == 'queued' then
  redis.call('ZREM', READY .. line_of(t), id)
elseif t.s == 'due' then
  redis.call('ZREM', DUE, id)
elseif t.s == 'waiting' then
  redis.call('ZREM', WAIT .. t.k, id)
end
count('waiting', -1)
end_task(id, t, 'cancelled', '')
flush_tasks()
return 'cancelled'
