-- Trims a stream without dropping what some group still needs: the one step behind retain="until_acked".
-- KEYS[1] stream   ARGV[1] maxlen   ARGV[2] backlog_max (> maxlen)   ARGV[3] '1' to drop beyond backlog_max
-- Returns {length, trimmed, dropped}. dropped counts only events that some group may still have needed.
-- Cost: O(groups x log pending + evicted macro nodes); nothing at all while the stream is not longer than maxlen.
local key, maxlen, backlog_max = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local length = redis.call('XLEN', key)
if length <= maxlen then return {length, 0, 0} end

-- Ids hold two 64-bit numbers, more than a double: compare the digits.
local function digits_below(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function below(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then return digits_below(a_ms, b_ms) end
  return digits_below(a_seq, b_seq)
end

-- The lowest id that some group needs: its oldest pending event, and whatever follows its last delivered one.
local needed = nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local group = {}
  for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
  local lowest = group['last-delivered-id']
  if group['pending'] > 0 then
    local oldest = redis.call('XPENDING', key, group['name'])[2]
    if oldest and below(oldest, lowest) then lowest = oldest end
  end
  if needed == nil or below(lowest, needed) then needed = lowest end
end

if needed == nil then
  local trimmed = redis.call('XTRIM', key, 'MAXLEN', '~', maxlen)
  return {length - trimmed, trimmed, 0}
end

-- LIMIT keeps the newest maxlen: at most length - maxlen of the oldest go, and of those only the ones below needed.
local trimmed = redis.call('XTRIM', key, 'MINID', '~', needed, 'LIMIT', length - maxlen)
length = length - trimmed
if length < backlog_max then return {length, trimmed, 0} end

-- Near the limit the rest of a macro node counts, too: trim exactly.
local spare = #redis.call('XRANGE', key, '-', '(' .. needed, 'COUNT', length - maxlen)
if spare > 0 then
  local exact = redis.call('XTRIM', key, 'MAXLEN', '=', length - spare)
  length, trimmed = length - exact, trimmed + exact
end
local dropped = 0
if ARGV[3] == '1' and length > backlog_max then
  dropped = redis.call('XTRIM', key, 'MAXLEN', '=', backlog_max)
  length = length - dropped
end
return {length, trimmed, dropped}
