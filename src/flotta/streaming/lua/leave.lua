-- A consumer leaves in good order: what it holds may be taken over at once, and if it holds nothing it is deleted.
-- KEYS[1] stream   ARGV: group, consumer, grace in ms, ids that were counted and never handed out...
-- Returns how many events it still holds (0: the consumer is gone). The ids given get their delivery back.
local key, group, consumer, grace_ms = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local unseen = {}
for i = 4, #ARGV do unseen[ARGV[i]] = true end
local start, held = '-', 0
repeat
  local pending = redis.call('XPENDING', key, group, start, '+', 1000, consumer)
  for _, item in ipairs(pending) do
    local tried = unseen[item[1]] and math.max(item[4] - 1, 0) or item[4]
    redis.call('XCLAIM', key, group, consumer, 0, item[1], 'IDLE', grace_ms, 'RETRYCOUNT', tried, 'JUSTID')
    start = '(' .. item[1]
  end
  held = held + #pending
until #pending < 1000
if redis.call('XPENDING', key, group, '-', '+', 1, consumer)[1] then return held end
redis.call('XGROUP', 'DELCONSUMER', key, group, consumer)
return 0
