-- Starts the grace period of events anew that still wait in a live consumer's buffer.
-- KEYS[1] stream   ARGV: group, consumer, ids...
-- Returns for each id 1 if it is still this consumer's, else 0 (taken over meanwhile: it must not be handed out).
local result = {}
for i = 3, #ARGV do
  local mine = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if mine[1] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')  -- JUSTID: the delivery count stays
    result[#result + 1] = 1
  else
    result[#result + 1] = 0
  end
end
return result
