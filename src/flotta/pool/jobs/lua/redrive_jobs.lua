-- Dead letters of jobs become jobs again, with their checkpoints and without their crashes; no limit of the queue
-- applies.
-- KEYS[1] meta   ARGV: for each: id of the dead letter
-- Returns for each 'O' | 'E' a job with its key exists: the letter stays | 'N' no such letter | 'T' it is no job's |
-- 'S' (shutting down).   Again: 'N'.
local shutdown = redis.call('HEXISTS', META, 'shutdown') == 1
local answers = {}

local function redrive(id)
  local entry = redis.call('XRANGE', DEAD, id, id)[1]
  if not entry then
    return 'N'
  end
  local dead = {}
  for i = 1, #entry[2], 2 do
    dead[entry[2][i]] = entry[2][i + 1]
  end
  local key = dead.key
  if dead.kind ~= 'job' then
    return 'T'
  elseif shutdown then
    return 'S'
  elseif redis.call('EXISTS', JOB .. key) == 1 then
    return 'E'
  end
  redis.call('HSET', JOB .. key, 'k', dead.name, 'p', dead.payload, 'n', dead.slot, 'd', 'redrive-' .. id, 'f', '',
    'm', dead.crashes_max, 't', now_ms(), 'b', now_ms())
  if dead.checkpoint then
    redis.call('HSET', JOB .. key, 'z', dead.checkpoint)
  end
  count_slot(dead.slot, 1)
  redis.call('XDEL', DEAD, id)
  requeue_job(key, {o = '', k = dead.name}, slot_owner(dead.slot))
  return 'O'
end

for i = 1, #ARGV do
  answers[i] = redrive(ARGV[i])
end
return answers
