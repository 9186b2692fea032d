-- The taker of the last tick holds the ticker on, or lets it go: while it is held nobody takes the next one.
-- ARGV: name, attempt, hold_ms (0: let it go)
-- Returns 1, or 0 if somebody else has taken a tick since or the ticker is gone.
local TICKERS = P .. 'tickers'
local head, by = string.match(redis.call('HGET', TICKERS, ARGV[1]) or '', '^(%d+:%d+:%d+:%d+):%d+:(.*)$')
if by ~= ARGV[2] then
  return 0
end
local hold = tonumber(ARGV[3])
redis.call('HSET', TICKERS, ARGV[1], head .. ':' .. (hold > 0 and int(now_ms() + hold) or '0') .. ':' .. by)
return 1
