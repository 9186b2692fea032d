-- Stands between _common.lua and the scripts of membership. Owns the streams of members, the count of changes among
-- them (meta.members: whoever coordinates looks again when it moves), and the doorbell of the coordinator.
--
-- A stream must exist before anything is added to it (everybody adds with NOMKSTREAM). It outlives its member by far, so
-- that whoever buries a worker still finds the notifications it has not read; the expiry only catches what nobody buries.
local function open_stream(stream, life_ms)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XDEL', stream, redis.call('XADD', stream, '*', 't', ''))
  end
  redis.call('PEXPIRE', stream, life_ms)
end

local function members_changed()
  redis.call('HINCRBY', META, 'members', 1)
  reply(redis.call('GET', P .. 'coordinator'), 't', 'rebalance')
end
