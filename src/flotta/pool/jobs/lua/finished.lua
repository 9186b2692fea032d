-- Jobs have ended: their records are deleted; who asked for the stop of one hears `stopped`, and who still waits for
-- the start of one that was stopped before hears `gone`.
-- KEYS[1] meta   ARGV: worker, then for each job: key, fence
-- Returns for each job 'O' | 'F' fenced | 'N' gone.   Again: 'N', and nothing changes.
-- Calls: 2 a job (HMGET, HINCRBY; HDEL for the last job of a slot), 2 a batch (UNLINK, SREM), XADD for each who waits.
local worker, answers, ended, dropped, done = ARGV[1], {}, {}, {}, {}

local function finish(key, fence)
  local v = redis.call('HMGET', JOB .. key, 's', 'o', 'g', 'n', 'w', 'b', 'y', 'f', 'd')
  if not v[1] or done[key] then
    return 'N'
  elseif v[2] ~= worker or v[3] ~= fence or v[1] == 'q' then
    return 'F'
  end
  done[key] = true
  ended[#ended + 1] = key
  dropped[#dropped + 1] = JOB .. key
  dropped[#dropped + 1] = NOTES .. key
  count_slot(v[4], -1)
  if v[7] then
    redis.call('SREM', PLAN .. v[7], key)
  end
  if v[5] or not v[6] then
    tell_end(key, {w = v[5], b = v[6], f = v[8], d = v[9]}, 'gone')
  end
  return 'O'
end

for i = 2, #ARGV, 2 do
  answers[#answers + 1] = finish(ARGV[i], ARGV[i + 1])
end
if #ended > 0 then
  redis.call('UNLINK', unpack(dropped))
  redis.call('SREM', OWNED .. worker, unpack(ended))
end
return answers
