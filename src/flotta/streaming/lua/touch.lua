-- Starts the grace period of events anew that still wait in a live consumer's buffer.
-- KEYS[1] stream   ARGV: group, consumer, '1' to adopt, ids...
-- Returns for each id 1 if this consumer may hand it out, else 0 (another has it, or has had it).
-- An event that is pending for nobody was done by another consumer, or its group was made anew: a caller that was never
-- silent for a grace period knows that it is the latter, and adopts it.
local key, group, consumer, adopt = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local result = {}
for i = 4, #ARGV do
  local item = redis.call('XPENDING', key, group, ARGV[i], ARGV[i], 1)[1]
  local keep = adopt
  if item then keep = item[2] == consumer end
  if keep then redis.call('XCLAIM', key, group, consumer, 0, ARGV[i], 'FORCE', 'JUSTID') end  -- JUSTID: not counted
  result[#result + 1] = keep and 1 or 0
end
return result
