-- Deletes a stream, unless its newest event is of this very millisecond: a stream that begins anew gives out the ids of
-- the millisecond again from 0 on, and who has read the old ones would pass over the new.
-- KEYS[1] stream   Returns 1 if there is no such stream any more, else 0 (try again).
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' and tonumber(string.match(info[i + 1], '^%d+')) >= now_ms then return 0 end
end
redis.call('DEL', KEYS[1])
return 1
