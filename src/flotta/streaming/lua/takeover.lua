-- Takes over what other consumers (or this one, long ago) were given and have not acked within the grace period; what
-- has been tried often enough goes to the dead-letter stream in the same step, so that it is in exactly one place.
-- KEYS[1] stream   KEYS[2] dead-letter stream
-- ARGV: group, consumer, grace in ms, most events, max deliveries (0: no limit), dead-letter maxlen, stream name
-- Returns {entries, deliveries of each (the next one included), lost, buried, 1 if there may be more}.
-- Taking over counts no delivery (count.lua does, when an event is handed out): what only waited in a buffer whose
-- consumer died is not to blame for it.
-- lost: pending events whose entry is gone, because somebody trimmed or removed it.
local key, dead, group, consumer, grace_ms = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local count, max_deliveries = tonumber(ARGV[4]), tonumber(ARGV[5])
local pending = redis.call('XPENDING', key, group, 'IDLE', grace_ms, '-', '+', count)
local entries, deliveries, lost, buried = {}, {}, 0, 0

local function bury(id, tried)
  local entry = redis.call('XRANGE', key, id, id)[1]
  redis.call('XACK', key, group, id)
  if not entry then
    lost = lost + 1
    return
  end
  local fields, source = {}, entry[2]
  for i = 1, #source, 2 do
    if source[i] ~= 'g' then  -- the address of an event that was redriven before
      fields[#fields + 1] = source[i]
      fields[#fields + 1] = source[i + 1]
    end
  end
  for _, extra in ipairs({'o', id, 's', ARGV[7], 'd', tried, 'r', 'not acked after ' .. tried .. ' deliveries'}) do
    fields[#fields + 1] = extra
  end
  redis.call('XADD', dead, 'MAXLEN', '~', ARGV[6], '*', unpack(fields))
  buried = buried + 1
end

for _, item in ipairs(pending) do
  local id, tried = item[1], item[4]
  if max_deliveries > 0 and tried >= max_deliveries then
    bury(id, tried)
  else
    local entry = redis.call('XCLAIM', key, group, consumer, grace_ms, id, 'RETRYCOUNT', tried)[1]
    if entry then
      entries[#entries + 1] = entry
      deliveries[#deliveries + 1] = tried + 1
    else
      redis.call('XACK', key, group, id)  -- before 7.0 XCLAIM leaves such an id pending
      lost = lost + 1
    end
  end
end
return {entries, deliveries, lost, buried, #pending == count and 1 or 0}
