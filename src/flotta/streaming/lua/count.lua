-- Counts a delivery of events that were taken over, right before they are handed out.
-- KEYS[1] stream   ARGV: group, consumer, then for each event: id, deliveries (this one included)
-- Returns for each event 1 if it is still this consumer's, else 0 (then it must not be handed out).
-- The count is set, not raised: doing it again for the same delivery changes nothing.
local result = {}
for i = 3, #ARGV, 2 do
  local mine = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1]
  if mine then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
  end
  result[#result + 1] = mine and 1 or 0
end
return result
