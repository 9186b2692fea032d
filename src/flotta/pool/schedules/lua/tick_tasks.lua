-- Enqueues the tasks whose time has come, each in one step with moving its schedule on: whoever asks may die at once,
-- and nobody can enqueue for the same time again.
-- ARGV: clock_ms ('' = the server's time), then ten for each: field, the next time that the caller knows, the time to
-- enqueue for ('' = it was missed by too much, enqueue nothing), the next time after now, task id, name, payload, queue,
-- priority, options.
-- Record: field -> "<next_ms>" in the hash "tickers".
-- Returns {now_ms, then for each: its next time, '1' if this call has moved it on}, or {'SHUTDOWN'}. Again: changes
-- nothing, the times are others then.
if redis.call('HEXISTS', META, 'shutdown') == 1 then
  return {'SHUTDOWN'}
end
local TICKERS = P .. 'tickers'
local now = ARGV[1] ~= '' and tonumber(ARGV[1]) or now_ms()
local answers = {int(now)}
for i = 2, #ARGV, 10 do
  local field, known, at, following = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local stored = redis.call('HGET', TICKERS, field)
  local moved = stored == known and tonumber(known) <= now and tonumber(following) > now
  if moved and at ~= '' then
    enqueue_alone(unpack(ARGV, i + 4, i + 9))
  end
  if moved or not stored then
    redis.call('HSET', TICKERS, field, following)
    stored = following
  end
  answers[#answers + 1] = stored
  answers[#answers + 1] = moved and '1' or ''
end
flush_tasks()
return answers
