-- What a worker holds by the records: finds what a lost reply had handed out, and what was cancelled meanwhile.
-- ARGV: worker. Returns {id, fence, name, payload, failures, losses, options, '1' if it should be cancelled else '', ...}.
-- Changes nothing but pointers to tasks that it does not hold.
local worker = ARGV[1]
local tasks = {}
for _, id in ipairs(redis.call('SMEMBERS', HELD .. worker)) do
  local v = redis.call('HMGET', TASK .. id, 's', 'o', 'g', 'n', 'p', 'a', 'l', 'op', 'x')
  if v[1] == 'running' and v[2] == worker then
    local k = #tasks
    tasks[k + 1], tasks[k + 2], tasks[k + 3], tasks[k + 4] = id, v[3], v[4], v[5]
    tasks[k + 5], tasks[k + 6], tasks[k + 7], tasks[k + 8] = v[6] or '0', v[7] or '0', v[8] or '', v[9] or ''
  else
    redis.call('SREM', HELD .. worker, id)
  end
end
return tasks
