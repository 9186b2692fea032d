-- Declares a ticker. One that runs with this interval already is left alone; otherwise the interval is the new one, for
-- everybody who has the ticker.
-- ARGV: name, every_ms, first_ms (from now to the first tick), clock_ms ('' = the server's time)
-- Returns 1 if it was made or changed, 0 if it was there.
local TICKERS = P .. 'tickers'
local record = redis.call('HGET', TICKERS, ARGV[1]) or ''
local every, rest = string.match(record, '^%d+:(%d+)(:.*)$')
if every == ARGV[2] then
  return 0
end
local now = ARGV[4] ~= '' and tonumber(ARGV[4]) or now_ms()
redis.call('HSET', TICKERS, ARGV[1], int(now + tonumber(ARGV[3])) .. ':' .. ARGV[2] .. (rest or ':0:0:0:'))
return 1
