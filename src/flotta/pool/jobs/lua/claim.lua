-- A worker takes jobs that are queued for it: they are running from now on (starting, where the job says itself when it
-- is ready), and their dispatchers hear `started` at the first start.
-- KEYS[1] meta   ARGV: worker, bytes of payloads and checkpoints that one reply may hold, then for each job: key,
-- fence, '1' if it says itself when it is ready, else ''
-- Returns for each job: {'G' (go), kind, payload, checkpoint or nil, crashes, losses, crashes allowed, 1 if it was
-- started before else 0} | {'F' fenced, or the lease is over} | {'N' gone} | {'X' stopping: end it} | {'L' later: ask
-- again, the reply is full}.
-- Again: answers like the first time, without a second `started`. Whoever holds the job already must not claim it.
-- Calls: 2 a job (HMGET, HSET), 2 a batch (ZSCORE, ZREM), XADD for each dispatcher.
local worker, bytes_left = ARGV[1], tonumber(ARGV[2])
local answers, claimed, told = {}, {}, {}
local live, now = is_live(worker), int(now_ms())

local function start(key, v, explicit)
  claimed[#claimed + 1] = key
  if explicit then
    redis.call('HSET', JOB .. key, 's', 's')
  elseif v[10] then
    redis.call('HSET', JOB .. key, 's', 'r')
  else
    redis.call('HSET', JOB .. key, 's', 'r', 'b', now)
    local node = v[11]
    if node ~= '' then
      local entry = told[node] or {'t', 'started', 'w', worker}
      local last = #entry
      entry[last + 1], entry[last + 2], entry[last + 3], entry[last + 4], entry[last + 5], entry[last + 6] =
        'd', v[12], 'k', key, 'g', v[3]
      told[node] = entry
    end
  end
end

local function claim(key, fence, explicit)
  if bytes_left <= 0 then
    return {'L'}
  end
  local v = redis.call('HMGET', JOB .. key, 's', 'o', 'g', 'k', 'p', 'z', 'c', 'l', 'm', 'b', 'f', 'd')
  local state = v[1]
  if not state then
    return {'N'}
  elseif v[2] ~= worker or v[3] ~= fence then
    return {'F'}
  elseif state == 'x' then
    return {'X'}
  elseif state == 'q' then
    start(key, v, explicit)
  end
  bytes_left = bytes_left - #v[5] - (v[6] and #v[6] or 0)
  return {'G', v[4], v[5], v[6], tonumber(v[7]) or 0, tonumber(v[8]) or 0, tonumber(v[9]), v[10] and 1 or 0}
end

for i = 3, #ARGV, 3 do
  answers[#answers + 1] = live and claim(ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1') or {'F'}
end
if #claimed > 0 then
  redis.call('ZREM', QUEUED, unpack(claimed))
end
for node, entry in pairs(told) do
  reply(node, unpack(entry))
end
return answers
