-- What a worker holds by the records: finds what a lost reply had handed out, and what was cancelled meanwhile.
-- ARGV: worker, then the fences of what it knows that it runs: name, payload, failures, losses and options of these are
-- not said. Returns {id, fence, name, payload, failures, losses, options, '1' if it should be cancelled else '', ...}.
-- Changes nothing but pointers to tasks that it does not hold.
local worker = ARGV[1]
local tasks, known = {}, {}
for i = 2, #ARGV do
  known[ARGV[i]] = true
end
for _, id in ipairs(redis.call('SMEMBERS', HELD .. worker)) do
  local v = redis.call('HMGET', TASK .. id, 's', 'o', 'g', 'x')
  if v[1] == 'running' and v[2] == worker then
    local f = known[v[3]] and {} or redis.call('HMGET', TASK .. id, 'n', 'p', 'a', 'l', 'op')
    local k = #tasks
    tasks[k + 1], tasks[k + 2], tasks[k + 3], tasks[k + 4] = id, v[3], f[1] or '', f[2] or ''
    tasks[k + 5], tasks[k + 6], tasks[k + 7], tasks[k + 8] = f[3] or '0', f[4] or '0', f[5] or '', v[4] or ''
  else
    redis.call('SREM', HELD .. worker, id)
  end
end
return tasks
